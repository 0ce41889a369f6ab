"""Random states of a few slots. All have the same shape, so that little is compiled."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from emsjax.engine.acceptance import no_experience
from emsjax.engine.state import DecodeState, SlotStats
from emsjax.limits import MAX_STOP_IDS

IDLE, DECODING, PREFILLING = "idle", "decoding", "prefilling"


def make_state(num_slots: int, capacity: int, draft_length: int, **fields: Any) -> DecodeState:
    """Makes B slots of S tokens with a minimal cache; fields that are not given are 0."""
    zeros = np.zeros(num_slots, np.int32)
    counts = np.zeros((num_slots, draft_length), np.int32)
    given = {name: np.asarray(value) for name, value in fields.items()}
    defaults = {
        "cache": np.zeros((1, num_slots, 1, 1, 1), np.float32),
        "tokens": np.zeros((num_slots, capacity), np.int32),
        "emitted_at": np.zeros((num_slots, capacity), np.int32),
        "lens": zeros,
        "kv_lens": zeros,
        "prompt_lens": zeros,
        "max_lens": zeros,
        "stop_ids": np.full((num_slots, MAX_STOP_IDS), -1, np.int32),
        "live": np.zeros(num_slots, np.bool),
    }
    stats = SlotStats(zeros, zeros, counts, counts, zeros, zeros, zeros, zeros, zeros)
    return DecodeState(
        **{**defaults, **given},
        drafter=(),
        stats=stats,
        experience=no_experience(num_slots),
    )


def int32s(values: Any) -> np.ndarray:
    return np.asarray(values, np.int32)


@st.composite
def slots(draw: Any, num_slots: int, capacity: int) -> dict[str, np.ndarray]:
    """Draws the lengths of B slots that are idle, decode or still read their prompt."""
    kinds = draw(
        st.lists(
            st.sampled_from((IDLE, DECODING, PREFILLING)), min_size=num_slots, max_size=num_slots
        )
    )
    lens, kv_lens, max_lens = [], [], []
    for kind in kinds:
        lens.append(draw(st.integers(1, capacity - 1)))
        max_lens.append(draw(st.integers(lens[-1] + 1, capacity)))
        most_unread = lens[-1] if kind == PREFILLING else 1
        kv_lens.append(lens[-1] - draw(st.integers(1, most_unread)))
    return {
        "lens": int32s(lens),
        "kv_lens": int32s(kv_lens),
        "max_lens": int32s(max_lens),
        "live": np.asarray([kind != IDLE for kind in kinds], jnp.bool),
    }
