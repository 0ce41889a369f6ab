"""Tokens are drawn with the right probabilities, over a vocabulary of several blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emsjax.sampling import draw as module
from emsjax.sampling.blocks import BLOCK
from emsjax.sampling.draw import draw
from tests.sampling import chi_square

SIGNIFICANCE = 1e-3
ROWS = 40_000


def log_weights(width: int) -> np.ndarray:
    """Returns peaked weights, uneven across blocks, with some tokens and one block forbidden."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=width) * 2 + np.repeat(rng.normal(size=-(-width // BLOCK)), BLOCK)[:width]
    x[rng.random(width) < 0.2] = -np.inf
    x[BLOCK : 2 * BLOCK] = -np.inf
    return (x - x.max()).astype(np.float32)


def p_value(x: np.ndarray, tokens: np.ndarray) -> float:
    p = np.exp(x.astype(np.float64))
    return chi_square.p_value(np.bincount(tokens, minlength=len(x)), p / p.sum())


def drawn(x: np.ndarray, by: str) -> np.ndarray:
    numbers = np.arange(ROWS)
    keys = np.zeros((ROWS, 2), np.uint32)
    keys[:, 1] = 7 if by == "position" else numbers
    positions = np.where(by == "position", numbers, 5).astype(np.int32)
    draw_all = jax.jit(jax.vmap(lambda key, place: draw(x[None], key[None], place[None])[0]))
    return np.asarray(draw_all(keys, positions))


@pytest.mark.parametrize("by", ["position", "key"])
@pytest.mark.parametrize("width", [5, BLOCK, 1000])
def test_probabilities_are_right_over_positions_and_over_seeds(width: int, by: str):
    x = log_weights(width)
    assert p_value(x, drawn(x, by)) > SIGNIFICANCE


def test_the_same_noise_for_blocks_and_tokens_is_found(monkeypatch: pytest.MonkeyPatch):
    x, right = log_weights(1000), module._gumbel

    def wrong(keys: jax.Array, positions: jax.Array, count: int) -> jax.Array:
        noise = right(keys, positions, count)
        return jnp.concatenate([noise[:, :-BLOCK], noise[:, :BLOCK]], axis=1)

    monkeypatch.setattr(module, "_gumbel", wrong)
    assert p_value(x, drawn(x, "position")) < SIGNIFICANCE


def test_positions_are_independent():
    """Neighbouring positions of one seed agree as often as independent draws would."""
    x = log_weights(5)
    tokens = drawn(x, "position")
    p = np.exp(x) / np.exp(x).sum()
    same, share = (tokens[1:] == tokens[:-1]).mean(), float((p**2).sum())
    assert same == pytest.approx(share, abs=4 * np.sqrt(share / ROWS))


def test_nearly_equal_distributions_nearly_always_draw_the_same_token():
    """A drafter that samples with the same noise relies on this (arXiv 2408.07978)."""
    x = log_weights(1000)
    rng = np.random.default_rng(1)
    other = (x + rng.normal(size=1000) * 0.2).astype(np.float32)
    p, q = (np.exp(v) / np.exp(v).sum() for v in (x, other - other.max()))
    distance = np.abs(p - q).sum() / 2
    agree = (drawn(x, "key") == drawn(other - other.max(), "key")).mean()
    assert 0.03 < distance < 0.2
    # There are two draws, of the block and of the token in it. Each agrees at least this often.
    assert agree > ((1 - distance) / (1 + distance)) ** 2
