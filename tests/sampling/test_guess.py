"""What a drafter guesses of the target's choice, and how sure it says it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emsjax.engine.state import DecodeState
from emsjax.sampling.blocks import BLOCK
from emsjax.sampling.choice import make_choice
from emsjax.sampling.choose import choose
from emsjax.sampling.draw import _gumbel
from emsjax.sampling.guess import Guesses, guess
from emsjax.sampling.rows import NO_TOKEN, Rows
from emsjax.sampling.state import admit_choice, empty_sampling
from tests.engine.states import make_state

VOCAB, PLACES, COUNT, CACHE_LEN = 1000, 300, 3, 512


def state_of(**settings: float) -> DecodeState:
    """One slot; every row of it stands for a place of a text."""
    sampling = empty_sampling(1, CACHE_LEN, jnp.zeros(VOCAB, jnp.uint8))
    prompt = np.ones(CACHE_LEN, np.int32)
    choice = make_choice(seed=3, **settings)
    sampling = admit_choice(sampling, np.int32(0), choice, prompt, np.int32(1))
    state = make_state(1, CACHE_LEN, 1, live=np.ones(1, np.bool), lens=np.full(1, 400, np.int32))
    return state.replace(sampling=sampling)


def rows_of(count: int) -> Rows:
    nothing = np.zeros(count, np.int32)
    return Rows(
        slots=nothing,
        positions=np.arange(count, dtype=np.int32),
        tokens=nothing + 1,
        before=nothing + 1,
        path=np.full((count, 1), NO_TOKEN, np.int32),
    )


def logits_of(count: int, sharp: float = 3.0, seed: int = 0) -> np.ndarray:
    """Peaked logits, uneven across blocks, with some tokens that cannot be guessed."""
    rng = np.random.default_rng(seed)
    logits = sharp * rng.normal(size=(count, VOCAB))
    logits += np.repeat(rng.normal(size=(count, -(-VOCAB // BLOCK))), BLOCK, axis=1)[:, :VOCAB]
    logits[:, rng.random(VOCAB) < 0.2] = -np.inf
    logits[:, BLOCK : 2 * BLOCK] = -np.inf
    return logits.astype(np.float32)


def guessed(logits: np.ndarray, state: DecodeState, count: int = COUNT) -> Guesses:
    return jax.device_get(
        jax.jit(guess, static_argnums=3)(logits, rows_of(len(logits)), state, count)
    )


@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 0.6}, {"temperature": 1.3, "top_k": 20, "top_p": 0.9}],
    ids=str,
)
def test_the_first_guess_is_what_the_target_chooses_from_the_same_logits(settings):
    logits, state = logits_of(PLACES), state_of(**settings)
    chosen = jax.jit(choose)(logits, rows_of(PLACES), state).tokens
    found = guessed(logits, state)
    np.testing.assert_array_equal(found.tokens[:, 0], chosen)
    assert (np.diff(np.sort(found.tokens, axis=1)) > 0).all(), "all guesses differ"
    there = np.take_along_axis(logits, found.tokens, axis=1) > -np.inf
    assert (found.confidence[~there] == 0).all()
    assert ((found.confidence >= 0) & (found.confidence < 1)).all()
    assert (found.confidence[:, 0] > 0).all()


def test_further_guesses_are_the_likeliest_with_the_noise():
    logits, state = logits_of(20), state_of(temperature=0.7)
    found = guessed(logits, state)
    keys = jnp.repeat(state.sampling.keys, 20, axis=0)
    blocks = -(-VOCAB // BLOCK)
    noise = np.asarray(_gumbel(keys, rows_of(20).positions, blocks + BLOCK), np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        for row, own in enumerate(logits.astype(np.float64)):
            padded = np.pad((own - own.max()) / 0.7, (0, -VOCAB % BLOCK), constant_values=-np.inf)
            by_block = padded.reshape(blocks, BLOCK)
            masses = np.log(np.exp(by_block).sum(axis=1)) + noise[row, :blocks]
            lanes = by_block + noise[row, blocks:]
            first = np.argmax(masses) * BLOCK + np.argmax(lanes[np.argmax(masses)])
            weights = np.exp(0.7 * masses) / np.exp(0.7 * masses).sum()
            inner = np.exp(0.7 * lanes)
            score = np.nan_to_num(weights[:, None] * inner / inner.sum(axis=1, keepdims=True))
            score[np.argsort(-masses)[COUNT:]] = 0  # other blocks are not searched
            order = [token for token in np.argsort(-score.ravel()) if token != first]
            assert found.tokens[row].tolist() == [first, *order[: COUNT - 1]]


def loss(said: np.ndarray, right: np.ndarray) -> float:
    said = np.clip(said, 1e-4, 1 - 1e-4)
    return float(-np.log(np.where(right, said, 1 - said)).mean())


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_confidence_under_sampling_tells_right_guesses_from_wrong_ones(temperature: float):
    """A guess's share alone says less than a constant: the noise makes unlikely tokens right."""
    target, state = logits_of(PLACES), state_of(temperature=temperature)
    rng = np.random.default_rng(9)
    # The drafter knows half of what makes up the target's logits.
    draft = ((target + 3 * rng.normal(size=target.shape)) / 2).astype(np.float32)
    chosen = np.asarray(jax.jit(choose)(target, rows_of(PLACES), state).tokens)
    found = guessed(draft, state)
    right = found.tokens == chosen[:, None]
    shares = np.asarray(jax.nn.softmax(draft / temperature, axis=1))
    shares = np.take_along_axis(shares, found.tokens, axis=1)
    assert loss(found.confidence[:, 0], right[:, 0]) < loss(right[:, 0].mean(), right[:, 0])
    for rank in range(COUNT):
        mine = loss(found.confidence[:, rank], right[:, rank])
        assert mine < loss(shares[:, rank], right[:, rank]), f"guess {rank}"


def test_greedy_and_sampled_rows_share_a_batch():
    """A greedy row's confidence is the share of its token, as without sampling."""
    logits = logits_of(5)
    greedy = guessed(logits, state_of())
    alone = guessed(logits, make_state(1, CACHE_LEN, 1, live=np.ones(1, np.bool)))
    jax.tree.map(np.testing.assert_array_equal, greedy, alone)
    shares = np.asarray(jax.nn.softmax(logits, axis=1))
    best = np.argsort(-shares, axis=1)[:, :COUNT]
    np.testing.assert_array_equal(greedy.tokens, best)
    np.testing.assert_allclose(
        greedy.confidence, np.take_along_axis(shares, best, axis=1), rtol=1e-5
    )
