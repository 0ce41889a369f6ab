import itertools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emsjax.engine.ladder import (
    EXACT_CAPACITY,
    Rung,
    default_draft_length,
    ladder_for,
    make_ladder,
)
from emsjax.engine.step_plan import first_fit
from tests.engine.states import int32s

BATCH_SIZES = range(1, 65)


@pytest.mark.parametrize("prefill_chunk", [32, 64, 256])
@pytest.mark.parametrize("draft_length", [0, 1, 3, 7, 15])
@pytest.mark.parametrize("exact", [False, True])
def test_every_ladder_holds_any_plan(draft_length, prefill_chunk, exact):
    options = {"exact": exact, "prefill_chunk": prefill_chunk}
    for num_slots, narrowest in itertools.product(BATCH_SIZES, (4, 8)):
        ladder = make_ladder(num_slots, draft_length, narrowest=narrowest, **options)
        capacities = [rung.capacity for rung in ladder]
        assert capacities == sorted(capacities), (num_slots, ladder)
        assert min(capacities) >= num_slots, "one row for every slot"
        # A plan may fill the largest capacity, even with rows of a single slot.
        assert ladder[-1].max_q_len == ladder[-1].capacity == max(capacities), (num_slots, ladder)


@pytest.mark.parametrize("draft_length", [1, 3, 7, 15])
def test_draft_rungs_range_from_a_few_draft_tokens_to_all(draft_length):
    for num_slots in BATCH_SIZES:
        ladder = make_ladder(num_slots, draft_length)
        full = num_slots * (draft_length + 1)
        drafting = [r for r in ladder if r.max_q_len > draft_length and r.capacity < full + 8]
        assert any(r.capacity >= full for r in drafting), (num_slots, ladder)
        assert drafting[0].capacity <= num_slots + 8, (num_slots, ladder)
        for smaller, larger in itertools.pairwise(drafting):
            assert larger.capacity <= 2 * smaller.capacity


def test_plain_decoding_has_a_rung_of_one_row_per_slot():
    assert make_ladder(1, 7)[0] == Rung(1, 1)
    assert make_ladder(8, 0)[0] == Rung(8, 1)
    assert make_ladder(9, 0)[0] == Rung(16, 1)


def test_narrowest_adds_a_rung_for_few_rows():
    assert make_ladder(1, 7, narrowest=4)[:3] == (Rung(1, 1), Rung(4, 8), Rung(8, 8))
    assert make_ladder(3, 7, narrowest=4)[:3] == (Rung(4, 1), Rung(4, 8), Rung(8, 8))
    assert make_ladder(8, 7, narrowest=4) == make_ladder(8, 7)


def test_exact_is_one_capacity_whatever_the_batch():
    ladders = {
        make_ladder(num_slots, draft_length, exact=True, prefill_chunk=chunk)
        for num_slots in BATCH_SIZES
        for draft_length in (0, 7)
        for chunk in (64, 256)
    }
    assert ladders == {(Rung(EXACT_CAPACITY, EXACT_CAPACITY),)}
    assert BATCH_SIZES[-1] == EXACT_CAPACITY
    assert make_ladder(100, 7, exact=True) == (Rung(128, 128),)
    for num_slots in range(1, 17):
        assert make_ladder(num_slots, 7, exact=True, exact_capacity=16) == (Rung(16, 16),)


# A ladder like those from 16 slots on: a rung for prompts comes before the widest one for drafts.
LADDER = (Rung(4, 1), Rung(8, 3), Rung(12, 12), Rung(16, 5), Rung(16, 16), Rung(32, 32))
fit = jax.jit(lambda q_lens: first_fit(LADDER, q_lens, 4))


@given(st.lists(st.integers(0, 8), min_size=4, max_size=4))
def test_first_fit_takes_a_rung_for_prompts_only_if_no_other_fits(q_lens):
    expected = min(
        (rung.max_q_len > 5, index)
        for index, rung in enumerate(LADDER)
        if sum(q_lens) <= rung.capacity and max(q_lens) <= rung.max_q_len
    )[1]
    found = np.asarray(fit(int32s(q_lens)))
    assert (found, found.dtype) == (expected, np.int32)


def test_longer_drafts_add_no_rows_to_the_widest_program():
    """On a GPU or TPU they are the default as long as prompts need as many rows."""
    for platform, num_slots in itertools.product(("cpu", "gpu", "tpu"), BATCH_SIZES):
        length = default_draft_length(platform, num_slots)
        assert length == (15 if platform != "cpu" and num_slots <= 32 else 7)
        widest, as_before = (ladder_for(platform, num_slots, k)[-1] for k in (length, 7))
        assert widest == as_before
