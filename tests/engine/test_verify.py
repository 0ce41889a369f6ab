"""Compares acceptance and commit with a loop over slots and tokens."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from emsjax.engine.draft import ROOT, Draft
from emsjax.engine.state import DecodeState
from emsjax.engine.step_plan import Plan, Planned
from emsjax.engine.tree import tree_of
from emsjax.engine.verify import Verdict, commit, verify
from emsjax.limits import MAX_STOP_IDS
from emsjax.sampling.choose import Chosen
from emsjax.sampling.rows import NO_TOKEN
from tests.engine.states import int32s, make_state, slots

NUM_SLOTS, CACHE_LEN, K, VOCAB = 4, 12, 3, 4


def matrix(columns: int, lowest: int = 0) -> st.SearchStrategy[np.ndarray]:
    """Draws int32[B, columns] with few different tokens, so that guesses are often right."""
    row = st.lists(st.integers(lowest, VOCAB - 1), min_size=columns, max_size=columns)
    return st.lists(row, min_size=NUM_SLOTS, max_size=NUM_SLOTS).map(int32s)


@st.composite
def steps(draw: Any) -> tuple[dict, Draft, Plan, np.ndarray]:
    """Draws slots, a draft, a plan that fits them, and the target's choices."""
    fields = draw(slots(NUM_SLOTS, CACHE_LEN))
    fields["tokens"] = draw(matrix(CACHE_LEN))
    stops = [draw(st.lists(st.integers(0, VOCAB), max_size=2)) for _ in range(NUM_SLOTS)]
    fields["stop_ids"] = int32s([(s + [-1] * MAX_STOP_IDS)[:MAX_STOP_IDS] for s in stops])
    draft_tokens, predicted = draw(matrix(K)), draw(matrix(K + 1, NO_TOKEN))
    q_lens, draft_lens, complete = [], [], []
    for slot, live in enumerate(fields["live"].tolist()):
        lens, kv_len = (int(fields[x][slot]) for x in ("lens", "kv_lens"))
        known = draw(st.integers(1, lens - kv_len)) if live else 0
        complete.append(live and known == lens - kv_len)
        # Some drafts reach past the limit, because `commit` must not rely on the plan there.
        draft_lens.append(draw(st.integers(0, K if complete[-1] and known == 1 else 0)))
        q_lens.append(known + draft_lens[-1])
    unpadded = [0] * NUM_SLOTS
    plan = Plan(
        int32s(q_lens), int32s(draft_lens), int32s(unpadded), np.asarray(complete), int32s(0)
    )
    return fields, Draft(draft_tokens, int32s(draft_lens)), plan, predicted


@st.composite
def tree_steps(draw: Any) -> tuple[dict, Draft, Plan, np.ndarray]:
    """Draws what `steps` draws, with the guesses of each slot in a tree."""
    fields, draft, plan, predicted = draw(steps())
    tokens, parents = draft.tokens.copy(), np.full((NUM_SLOTS, K), ROOT, np.int32)
    for slot in range(NUM_SLOTS):
        for guess in range(1, K):
            parents[slot, guess] = draw(st.integers(ROOT, guess - 1))
            siblings = tokens[slot, :guess][parents[slot, :guess] == parents[slot, guess]]
            while tokens[slot, guess] in siblings:
                tokens[slot, guess] = (tokens[slot, guess] + 1) % VOCAB
    return fields, draft._replace(tokens=tokens, parents=parents), plan, predicted


@dataclass
class Slot:
    """One slot after the step, as Python lists."""

    known: list[int]
    kv_len: int
    live: bool
    drafted: list[int]
    emitted_at: list[int] = field(default_factory=list)
    target_steps: int = 0
    prefill_steps: int = 0
    accepted: list[int] = field(default_factory=lambda: [0] * K)
    failed: int = 0


def accepted_by_hand(draft: list[int], draft_len: int, predicted: list[int]) -> int:
    count = 0
    while count < draft_len and draft[count] == predicted[count]:
        count += 1
    return count


def commit_by_hand(
    fields: dict, draft: Draft, plan: Plan, predicted: np.ndarray, slot: int
) -> Slot:
    draft_len = int(plan.draft_lens[slot])
    known = fields["tokens"][slot, : fields["lens"][slot]].tolist()
    live = bool(fields["live"][slot])
    after = Slot(known, int(fields["kv_lens"][slot]), live, [int(i < draft_len) for i in range(K)])
    if not plan.complete[slot]:
        after.prefill_steps = int(live)
        after.kv_len += int(plan.q_lens[slot])
        return after
    choices = predicted[slot].tolist()
    accepted = accepted_by_hand(draft.tokens[slot].tolist(), draft_len, choices)
    for place, token in enumerate(choices[: accepted + 1]):
        if token == NO_TOKEN:
            after.live, after.failed = False, 1
            break
        known.append(token)
        after.emitted_at.append(1)
        if place < accepted:
            after.accepted[place] = 1
        if token in fields["stop_ids"][slot] or len(known) == fields["max_lens"][slot]:
            after.live = False
            break
    after.target_steps = int(bool(after.emitted_at))
    if not after.emitted_at:
        after.drafted, after.prefill_steps = [0] * K, int(live)
    after.kv_len = len(known) - 1
    return after


@jax.jit
def step(state: DecodeState, draft: Draft, plan: Plan, predicted: jax.Array) -> Any:
    tree = tree_of(draft)
    verdict = verify(draft.tokens, plan.draft_lens, predicted, tree)
    planned = Planned(plan, draft, jnp.zeros(draft.tokens.shape), tree)
    return verdict, commit(state, planned, verdict, Chosen(predicted, None))


def check(fields: dict, draft: Draft, plan: Plan, predicted: np.ndarray) -> DecodeState:
    state = make_state(NUM_SLOTS, CACHE_LEN, K, **fields)
    verdict, after = jax.device_get(step(state, draft, plan, predicted))
    if draft.parents is not None:
        draft, predicted, depths = as_chains(draft, plan, predicted, verdict)
    for slot in range(NUM_SLOTS):
        expected = commit_by_hand(fields, draft, plan, predicted, slot)
        if draft.parents is not None and expected.emitted_at:
            expected.drafted = depths[slot]
        count = accepted_by_hand(
            draft.tokens[slot].tolist(), int(plan.draft_lens[slot]), predicted[slot].tolist()
        )
        found = Slot(
            after.tokens[slot, : after.lens[slot]].tolist(),
            int(after.kv_lens[slot]),
            bool(after.live[slot]),
            after.stats.drafted[slot].tolist(),
            after.emitted_at[slot, fields["lens"][slot] : after.lens[slot]].tolist(),
            int(after.stats.target_steps[slot]),
            int(after.stats.prefill_steps[slot]),
            after.stats.accepted[slot].tolist(),
            int(after.stats.failed[slot]),
        )
        assert verdict.accepted[slot] == count
        assert found == expected, f"slot {slot}"
    for name in ("prompt_lens", "max_lens", "stop_ids"):
        np.testing.assert_array_equal(getattr(after, name), getattr(state, name))
    return after


def as_chains(
    draft: Draft, plan: Plan, predicted: np.ndarray, verdict: Verdict
) -> tuple[Draft, np.ndarray, list[list[int]]]:
    """Walks trees from their roots, and checks the verdict about each guess.

    Returns:
      The right paths as chains, with a wrong guess after each; the choices after their tokens; and
      how many guesses of each depth were verified, for each slot.
    """
    tokens, choices, depths = np.full((NUM_SLOTS, K), VOCAB), np.zeros((NUM_SLOTS, K + 1)), []
    for slot, length in enumerate(plan.draft_lens.tolist()):
        parents, guesses = draft.parents[slot, :length], draft.tokens[slot, :length]
        rows, tried, depth = [0], np.zeros(K, np.bool), [0] * K
        for guess, parent in enumerate(parents):  # a child comes after its parent
            tried[guess] = parent + 1 in rows
            if tried[guess] and guesses[guess] == predicted[slot, parent + 1]:
                rows.append(guess + 1)
            above, number = parent, 0
            while above != ROOT:
                above, number = parents[above], number + 1
            depth[number] += 1
        right = np.isin(np.arange(1, K + 1), rows[1:])
        np.testing.assert_array_equal(verdict.tried[slot], tried)
        np.testing.assert_array_equal(verdict.right[slot], right)
        assert verdict.path[slot, : len(rows)].tolist() == rows
        tokens[slot, : len(rows) - 1] = draft.tokens[slot][right]
        choices[slot, : len(rows)] = predicted[slot, rows]
        depths.append(depth)
    return draft._replace(tokens=int32s(tokens)), int32s(choices), depths


@settings(max_examples=300)
@given(tree_steps())
def test_a_step_with_trees_equals_walking_them_from_their_roots(drawn):
    check(*drawn)


@settings(max_examples=300)
@given(steps())
def test_a_step_equals_committing_token_by_token(drawn):
    check(*drawn)


def test_a_stop_token_among_accepted_ones_cuts_there():
    """The slots: accepted stop token, stop token as the bonus, limit reached, prompt being read."""
    stop = 3
    stop_ids = np.full((NUM_SLOTS, MAX_STOP_IDS), -1, np.int32)
    stop_ids[:, -1] = stop
    fields = {
        "tokens": np.zeros((NUM_SLOTS, CACHE_LEN), np.int32),
        "lens": int32s([4, 4, 8, 6]),
        "kv_lens": int32s([3, 3, 7, 1]),
        "max_lens": int32s([12, 12, 12, 12]),
        "stop_ids": stop_ids,
        "live": np.full(NUM_SLOTS, True),
    }
    predicted = int32s([[1, stop, 2, 1], [1, 2, 2, stop], [1, 2, 1, 2], [stop, 1, 1, 1]])
    draft = Draft(predicted[:, :K].copy(), int32s([3, 3, 3, 0]))
    complete = np.asarray([True, True, True, False])
    plan = Plan(int32s([4, 4, 4, 2]), draft.lens, draft.lens * 0, complete, int32s(0))
    after = check(fields, draft, plan, predicted)
    assert after.lens.tolist() == [6, 8, 12, 6]
    assert after.kv_lens.tolist() == [5, 7, 11, 3]
    assert after.live.tolist() == [False, False, False, True]
    assert after.stats.accepted.sum(axis=1).tolist() == [2, 3, 3, 0]
