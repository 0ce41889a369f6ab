import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from emsjax.state import MAX_STOP_IDS, admit, empty_state
from tests.units.states import int32s

NUM_SLOTS, CACHE_LEN, K = 3, 8, 2


def test_an_empty_state_has_nothing_to_do():
    state = empty_state(jnp.ones((2, NUM_SLOTS, CACHE_LEN, 1, 128), jnp.float32), K, "drafter")
    assert state.tokens.shape == (NUM_SLOTS, CACHE_LEN)
    assert state.stop_ids.shape == (NUM_SLOTS, MAX_STOP_IDS)
    assert state.stats.drafted.shape == state.stats.accepted.shape == (NUM_SLOTS, K)
    assert not state.live.any()
    assert state.drafter == "drafter"


def test_admit_resets_its_slot_and_leaves_the_others_alone():
    cache = jnp.ones((2, NUM_SLOTS, CACHE_LEN, 1, 128), jnp.float32)
    # As if every slot had been through something: 7 everywhere.
    used = jax.tree.map(lambda x: jnp.full_like(x, 7), empty_state(cache, K, jnp.zeros(1)))
    used = used.replace(live=jnp.asarray([True, False, True]))
    prompt, stop_ids = np.arange(CACHE_LEN), np.full(MAX_STOP_IDS, -1)
    request = (int32s(1), int32s(prompt), int32s(5), int32s(8), int32s(stop_ids))
    after = jax.device_get(jax.jit(admit)(used, *request))

    new = {
        "tokens": prompt,
        "lens": 5,
        "kv_lens": 0,
        "prompt_lens": 5,
        "max_lens": 8,
        "stop_ids": stop_ids,
        "live": True,
    }
    before = jax.device_get(used)
    others = [0, 2]
    for name, value in new.items():
        found = getattr(after, name)
        np.testing.assert_array_equal(found[1], value, name)
        np.testing.assert_array_equal(found[others], getattr(before, name)[others], name)
    for counter in dataclasses.fields(after.stats):
        found = getattr(after.stats, counter.name)
        assert not found[1].any(), counter.name
        assert (found[others] == 7).all(), counter.name
    np.testing.assert_array_equal(after.cache, before.cache)
    np.testing.assert_array_equal(after.drafter, before.drafter)
