import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emsjax.engine import state as state_module
from emsjax.engine.state import admit, copy_prefix, empty_state
from emsjax.limits import MAX_BAD_WORD_TOKENS, MAX_BAD_WORDS, MAX_STOP_IDS
from emsjax.sampling.choice import NEUTRAL, make_choice
from emsjax.sampling.schedule import make_schedule
from emsjax.sampling.state import SamplingState, empty_sampling
from tests.engine.states import int32s

NUM_SLOTS, CACHE_LEN, K, VOCAB = 3, 8, 2, 10


def test_an_empty_state_has_nothing_to_do():
    state = empty_state(jnp.ones((2, NUM_SLOTS, CACHE_LEN, 1, 128), jnp.float32), K, "drafter")
    assert state.tokens.shape == (NUM_SLOTS, CACHE_LEN)
    assert state.stop_ids.shape == (NUM_SLOTS, MAX_STOP_IDS)
    assert state.stats.drafted.shape == state.stats.accepted.shape == (NUM_SLOTS, K)
    assert not state.live.any()
    assert state.drafter == "drafter"


def test_admit_resets_its_slot_and_leaves_the_others_alone():
    cache = jnp.ones((2, NUM_SLOTS, CACHE_LEN, 1, 128), jnp.float32)
    # 7 everywhere, as if every slot had been used before.
    used = jax.tree.map(lambda x: jnp.full_like(x, 7), empty_state(cache, K, jnp.zeros(1)))
    sampling = empty_sampling(NUM_SLOTS, CACHE_LEN, np.zeros(VOCAB, np.uint8))
    used = used.replace(sampling=jax.tree.map(lambda x: jnp.full_like(x, 7), sampling))
    used = used.replace(live=jnp.asarray([True, False, True]))
    prompt, stop_ids = np.arange(CACHE_LEN), np.full(MAX_STOP_IDS, -1)
    choice = make_choice(
        seed=2**32 + 5,
        temperature=0.5,
        top_p=0.75,
        min_len=6,
        logprobs=True,
        words=[[3, 4]],
        scheduled=[(9, 5, True)],
    )
    request = (*map(int32s, (1, prompt, 5, 3, 8, stop_ids)), choice)
    after = jax.device_get(jax.jit(admit)(used, *request))

    new = {
        "tokens": prompt,
        "lens": 5,
        "kv_lens": 3,
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
    check_choice(after.sampling, before.sampling, others)
    np.testing.assert_array_equal(after.cache, before.cache)
    np.testing.assert_array_equal(after.drafter, before.drafter)


def check_choice(after: SamplingState, before: SamplingState, others: list[int]) -> None:
    settings = NEUTRAL._replace(
        temperature=0.5,
        adapt_temperature=0.5,
        top_p=0.75,
        logprobs=True,
        adjusted=True,
        min_len=6,
    )
    new = {"bias": 0, "in_prompt": np.arange(VOCAB) < 5, "counts": 0}
    new |= {"words": -np.ones((MAX_BAD_WORDS, MAX_BAD_WORD_TOKENS), np.int32)}
    new["words"][0, :2] = 4, 3
    of_slots = {"keys", "settings", "scheduled", *new}
    apart = {"token_classes", "logprobs", "grammars"}
    assert {f.name for f in dataclasses.fields(after)} - apart == of_slots
    for name in of_slots:
        for found, old in zip(
            jax.tree.leaves(getattr(after, name)),
            jax.tree.leaves(getattr(before, name)),
            strict=True,
        ):
            np.testing.assert_array_equal(found[others], old[others], name)
    for name, found in after.settings._asdict().items():
        assert found[1] == getattr(settings, name), name
    for name, value in new.items():
        np.testing.assert_array_equal(getattr(after, name)[1], value, name)
    for found, value in zip(after.scheduled, make_schedule([(9, 5, True)]), strict=True):
        np.testing.assert_array_equal(found[1], value)
    assert not (after.keys[1] == 7).all()


@settings(max_examples=25)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 7), st.data())
def test_copying_a_prefix_touches_no_other_slot(
    layers: int, slots: int, length: int, data: st.DataObject
):
    source, slot = (data.draw(st.integers(0, slots - 1)) for _ in range(2))
    values = np.arange(layers * slots * 14, dtype=np.float32).reshape(layers, slots, 7, 1, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state_module, "COPIED_TOKENS", 3)
        cache = jnp.asarray(values)
        copied = np.asarray(copy_prefix(cache, *map(int32s, (source, slot, length))))
    np.testing.assert_array_equal(copied[:, slot, :length], values[:, source, :length])
    others = [n for n in range(slots) if n != slot]
    np.testing.assert_array_equal(copied[:, others], values[:, others])
