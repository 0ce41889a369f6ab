"""Each row of logits is adjusted for its own prefix."""

from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emsjax.limits import MAX_STOP_IDS
from emsjax.sampling.adjust import adjust
from emsjax.sampling.rows import NO_TOKEN, Rows
from emsjax.sampling.state import empty_sampling
from tests.engine.states import int32s, make_state

NUM_SLOTS, CAPACITY, VOCAB, K = 3, 12, 7, 3


@st.composite
def slots(draw: Any) -> dict[str, np.ndarray]:
    """Draws prompts, outputs, drafts after them, and sampling parameters."""
    tokens = draw(
        st.lists(
            st.integers(0, VOCAB - 1), min_size=NUM_SLOTS * CAPACITY, max_size=NUM_SLOTS * CAPACITY
        )
    )
    lens = [draw(st.integers(1, CAPACITY - K)) for _ in range(NUM_SLOTS)]
    one = {
        "repetition_penalty": st.sampled_from((1.0, 0.5, 2.0)),
        "frequency_penalty": st.sampled_from((0.0, -0.5, 1.0)),
        "presence_penalty": st.sampled_from((0.0, 1.5)),
        "min_len": st.integers(0, CAPACITY),
    }
    drawn = {name: [draw(value) for _ in range(NUM_SLOTS)] for name, value in one.items()}
    return {
        "tokens": int32s(tokens).reshape(NUM_SLOTS, CAPACITY),
        "lens": int32s(lens),
        "prompt_lens": int32s([draw(st.integers(1, length)) for length in lens]),
        "stops": int32s([draw(st.integers(0, VOCAB)) for _ in range(NUM_SLOTS)]),
        **{name: np.asarray(values) for name, values in drawn.items()},
    }


def by_hand(logits: np.ndarray, drawn: dict, slot: int, position: int, bias: np.ndarray) -> Any:
    """Adjusts one row token by token."""
    prefix = drawn["tokens"][slot, : position + 1].tolist()
    output = prefix[drawn["prompt_lens"][slot] :]
    adjusted = logits.astype(np.float64) + bias
    if position + 1 < drawn["min_len"][slot] and drawn["stops"][slot] < VOCAB:
        adjusted[drawn["stops"][slot]] = -np.inf
    for token in range(VOCAB):
        if token in prefix:
            factor = drawn["repetition_penalty"][slot]
            adjusted[token] *= 1 / factor if adjusted[token] > 0 else factor
        adjusted[token] -= output.count(token) * drawn["frequency_penalty"][slot]
        adjusted[token] -= (token in output) * drawn["presence_penalty"][slot]
    return adjusted


def prefixes(tokens: np.ndarray, lens: Any, slot_ids: Any, positions: Any) -> Rows:
    """Returns the rows at these positions of texts whose tokens from `lens` on are draft tokens."""
    paths = []
    for slot, position in zip(slot_ids, positions, strict=True):
        drafted = tokens[slot, lens[slot] : position + 1].tolist()
        paths.append(drafted + [NO_TOKEN] * (K - len(drafted)))
    here, before = (tokens[slot_ids, np.maximum(np.asarray(positions) - n, 0)] for n in (0, 1))
    return Rows(*map(int32s, (slot_ids, positions, here, before, paths)))


@jax.jit
def ours(logits: jax.Array, rows: Rows, state: Any) -> jax.Array:
    settings = jax.tree.map(lambda x: x[rows.slots], state.sampling.settings)
    return adjust(logits, rows, settings, state, state.sampling)


@given(slots(), st.integers(0, 2**32))
def test_every_row_against_a_loop_over_its_prefix(drawn: dict, seed: int):
    rng = np.random.default_rng(seed)
    bias = np.where(rng.random((NUM_SLOTS, VOCAB)) < 0.2, -np.inf, rng.normal(size=VOCAB))
    stop_ids = np.full((NUM_SLOTS, MAX_STOP_IDS), -1, np.int32)
    stop_ids[:, 0] = np.where(drawn["stops"] < VOCAB, drawn["stops"], -1)
    known = {name: drawn[name] for name in ("tokens", "lens", "prompt_lens")}
    state = make_state(NUM_SLOTS, CAPACITY, K, stop_ids=stop_ids, **known)
    places = np.arange(CAPACITY)[None]
    prompt = places < drawn["prompt_lens"][:, None]
    output = (places < drawn["lens"][:, None]) & ~prompt
    one_hot = np.eye(VOCAB, dtype=np.int32)[drawn["tokens"]]
    sampling = empty_sampling(NUM_SLOTS, CAPACITY, np.zeros(VOCAB, np.uint8))
    sampling = sampling.replace(
        bias=bias.astype(np.float32),
        in_prompt=(one_hot * prompt[..., None]).any(axis=1),
        counts=(one_hot * output[..., None]).sum(axis=1).astype(np.int32),
        settings=sampling.settings._replace(
            min_len=int32s(drawn["min_len"]),
            **{n: drawn[n].astype(np.float32) for n in drawn if n.endswith("_penalty")},
        ),
    )
    # The last known token and each draft token after it, for every slot.
    slot_ids = np.repeat(np.arange(NUM_SLOTS), K + 1)
    positions = (drawn["lens"][:, None] - 1 + np.arange(K + 1)[None]).ravel()
    logits = (rng.normal(size=(len(positions), VOCAB)) * 3).astype(np.float32)
    rows = prefixes(drawn["tokens"], drawn["lens"], slot_ids, positions)
    found = np.asarray(ours(logits, rows, state.replace(sampling=sampling)))
    for row, slot, position, logit in zip(found, slot_ids, positions, logits, strict=True):
        wanted = by_hand(logit, drawn, slot, position, bias[slot])
        np.testing.assert_allclose(row, wanted, rtol=1e-5, atol=1e-5)


def test_without_adjustments_no_bit_changes():
    state = make_state(NUM_SLOTS, CAPACITY, K, lens=int32s([5, 6, 7]))
    sampling = empty_sampling(NUM_SLOTS, CAPACITY, np.zeros(VOCAB, np.uint8))
    sampling = sampling.replace(
        counts=np.ones((NUM_SLOTS, VOCAB), np.int32), in_prompt=np.ones((NUM_SLOTS, VOCAB), bool)
    )
    logits = np.random.default_rng(0).normal(size=(3, VOCAB)).astype(np.float32)
    logits[0, 0] = 3e38
    rows = prefixes(np.zeros((NUM_SLOTS, CAPACITY), np.int32), [5, 6, 7], [0, 1, 2], [4, 5, 6])
    found = np.asarray(ours(logits, rows, state.replace(sampling=sampling)))
    np.testing.assert_array_equal(found.view(np.int32), logits.view(np.int32))


@pytest.mark.parametrize("penalty", [0.5, 1.3, 2.0])
def test_the_repetition_penalty_is_that_of_transformers(penalty: float):
    torch = pytest.importorskip("torch")
    from transformers import RepetitionPenaltyLogitsProcessor

    logits = (np.random.default_rng(1).normal(size=(1, VOCAB)) * 3).astype(np.float32)
    tokens = int32s([[1, 2, 2, 5] + [0] * 8])
    state = make_state(1, CAPACITY, K, tokens=tokens, lens=int32s([4]), prompt_lens=int32s([2]))
    sampling = empty_sampling(1, CAPACITY, np.zeros(VOCAB, np.uint8))
    seen = np.zeros((2, 1, VOCAB), np.int32)
    seen[0, 0, [1, 2]], seen[1, 0, [2, 5]] = 1, 1
    sampling = sampling.replace(
        in_prompt=seen[0] > 0,
        counts=seen[1],
        settings=sampling.settings._replace(repetition_penalty=np.asarray([penalty], np.float32)),
    )
    rows = prefixes(tokens, [4], [0], [3])
    found = np.asarray(ours(logits, rows, state.replace(sampling=sampling)))
    process = RepetitionPenaltyLogitsProcessor(penalty)
    wanted = process(torch.tensor(tokens[:, :4]).long(), torch.tensor(logits.copy()))
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-6)
