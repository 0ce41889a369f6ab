"""The record of drafts, and the steps read back from it, against loops over slots and tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emsjax.engine.step_plan import Planned
from emsjax.engine.trace import TraceStep
from emsjax.engine.trace_record import NOTHING, no_drafts, steps_of
from emsjax.engine.verify import commit, verify
from emsjax.sampling.choose import Chosen
from tests.engine.states import make_state
from tests.engine.test_verify import CACHE_LEN, NUM_SLOTS, K, steps


@jax.jit
def record_step(state, draft, plan, predicted):
    verdict = verify(draft.tokens, plan.draft_lens, predicted)
    planned = Planned(plan, draft, jnp.zeros(draft.tokens.shape))
    return commit(state, planned, verdict, Chosen(predicted, None)).drafts


@settings(max_examples=100)
@given(steps())
def test_a_step_writes_its_draft_where_it_begins_and_nothing_else(drawn):
    fields, draft, plan, predicted = drawn
    before = np.asarray(no_drafts(NUM_SLOTS, K, CACHE_LEN)) - 7
    state = make_state(NUM_SLOTS, CACHE_LEN, K, **fields, drafts=before)
    expected = before.copy()
    for slot in range(NUM_SLOTS):
        if plan.complete[slot]:
            verified = int(plan.draft_lens[slot])
            column = [*draft.tokens[slot, :verified].tolist(), *[NOTHING] * (K - verified)]
            expected[slot, :, fields["lens"][slot]] = column
    np.testing.assert_array_equal(record_step(state, draft, plan, predicted), expected)


def test_nothing_is_recorded_unless_asked_for():
    assert make_state(1, CACHE_LEN, K).drafts is None


@st.composite
def histories(draw) -> tuple[list[TraceStep], int]:
    """Draws a possible sequence of steps, and how many of its tokens are kept."""
    found = []
    for _ in range(draw(st.integers(1, 6))):
        drafted = draw(st.lists(st.integers(0, 3), max_size=K))
        accepted = draw(st.integers(0, len(drafted)))
        found.append(TraceStep(tuple(drafted), accepted, accepted + 1))
    return found, draw(st.integers(0, sum(step.emitted for step in found)))


@settings(max_examples=200)
@given(histories())
def test_steps_are_read_back_as_they_were_made(drawn):
    history, kept = drawn
    tokens, emitted_at, columns = [], [], []
    for number, step in enumerate(history, start=1):
        # The target's own token must differ from the draft token in its place.
        own = (step.drafted[step.accepted] + 1) if step.accepted < len(step.drafted) else 0
        tokens += [*step.drafted[: step.accepted], own]
        emitted_at += [number] * step.emitted
        column = [*step.drafted, *[NOTHING] * (K - len(step.drafted))]
        columns += [column, *[[9] * K] * step.accepted]  # Other columns have no meaning.
    found = steps_of(
        *(np.asarray(x, np.int32) for x in (tokens, emitted_at)),
        np.asarray(columns, np.int32).T,
        kept,
    )
    rest = kept
    for step, expected in zip(found, history, strict=True):
        emitted = min(rest, expected.emitted)
        rest -= emitted
        assert step == expected._replace(emitted=emitted)
    assert rest == 0
    assert sum(len(step.sources) for step in found) == kept


@pytest.mark.parametrize(
    ("step", "sources", "rejected"),
    [
        (TraceStep((), 0, 1), ("plain",), ()),
        (TraceStep((5, 6), 0, 1), ("plain",), (5, 6)),
        (TraceStep((5, 6), 1, 2), ("drafted", "bonus"), (6,)),
        (TraceStep((5, 6), 2, 3), ("drafted", "drafted", "bonus"), ()),
        # The output ends among accepted tokens, so the rest is neither accepted nor rejected.
        (TraceStep((5, 6, 7), 2, 2), ("drafted", "drafted"), ()),
        (TraceStep((5, 6), 2, 1), ("drafted",), ()),
        (TraceStep((5, 6), 1, 0), (), ()),
    ],
)
def test_where_tokens_came_from(step, sources, rejected):
    assert (step.sources, step.rejected) == (sources, rejected)
