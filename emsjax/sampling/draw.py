"""Drawing a token with the Gumbel-max trick. Its noise is a function of key and position."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from emsjax.sampling.blocks import BLOCK, block_of, by_blocks
from emsjax.sampling.vocabulary import WHOLE, Vocabulary


def draw(
    x: jax.Array, keys: jax.Array, positions: jax.Array, vocabulary: Vocabulary = WHOLE
) -> jax.Array:
    """Draws a token from each row, int32[W], with probability proportional to exp(x).

    The function draws a block of the vocabulary, then a token in the block. This needs noise for
    V / 128 blocks and 128 tokens instead of V tokens, and gives the same distribution. With equal
    noise, nearly equal x nearly always yield the same token. A drafter that samples relies on this.

    Args:
      x: float32[W, V] or this device's part of it, at most 0; -inf for tokens that must not be
        drawn.
      keys: uint32[W, 2], the random key of each row's slot.
      positions: int32[W], the row's position in its sample.
      vocabulary: which tokens x is of.
    """
    blocks = by_blocks(x)
    count = blocks.shape[1]
    noise = _gumbel(keys, positions, vocabulary.blocks(count) + BLOCK)
    mass = jnp.log(jnp.exp(blocks).sum(axis=2))
    scores = mass + vocabulary.own(noise[:, :-BLOCK], count)
    block = jnp.argmax(scores, axis=1).astype(jnp.int32)
    lane = jnp.argmax(block_of(block, blocks) + noise[:, -BLOCK:], axis=1).astype(jnp.int32)
    score = jnp.take_along_axis(scores, block[:, None], axis=1)[:, 0]
    return vocabulary.at_best(score, block * BLOCK + lane, x.shape[1])


class Drawn(NamedTuple):
    """C tokens that a draw with nearly equal x may yield, the one that `draw` yields first.

    Attributes:
      tokens: int32[W, C], different from each other.
      share: float32[W, C], the share of each in what all tokens weigh with the noise; 0 for a token
        that cannot be drawn.
    """

    tokens: jax.Array
    share: jax.Array


def likeliest_draws(
    x: jax.Array,
    temperature: jax.Array,
    keys: jax.Array,
    positions: jax.Array,
    count: int,
    vocabulary: Vocabulary = WHOLE,
) -> Drawn:
    """Returns what a draw with these keys and nearly equal x is likely to yield.

    Args:
      x: as for `draw`.
      temperature: float32[W], by which x has been divided. What differs between two models are
        logits, so the noise is weighed in their unit.
      keys: as for `draw`.
      positions: as for `draw`.
      count: C.
      vocabulary: as for `draw`.
    """
    blocks = by_blocks(x)
    here = blocks.shape[1]
    noise = _gumbel(keys, positions, vocabulary.blocks(here) + BLOCK)
    unit = temperature[:, None]
    of_blocks = vocabulary.own(noise[:, :-BLOCK], here)
    mass = unit * (jnp.log(jnp.exp(blocks).sum(axis=2)) + of_blocks)
    # Tokens of further blocks are hardly ever among the likeliest.
    among, found = vocabulary.top(mass, count)
    among -= vocabulary.log_total(mass)[:, None]
    inside = vocabulary.at(blocks, found)
    lanes = unit[:, :, None] * (inside + noise[:, None, -BLOCK:])
    score = among[:, :, None] + jax.nn.log_softmax(lanes, axis=2)
    score = jnp.where(inside > -jnp.inf, score, -jnp.inf).reshape(x.shape[0], -1)
    places = jnp.arange(score.shape[1], dtype=jnp.int32)[None]
    drawn = places == jnp.argmax(lanes[:, 0], axis=1)[:, None]
    _, best = jax.lax.top_k(jnp.where(drawn, jnp.inf, score), count)
    tokens = jnp.take_along_axis(found, best // BLOCK, axis=1) * BLOCK + best % BLOCK
    share = jnp.exp(jnp.take_along_axis(score, best, axis=1))
    return Drawn(tokens.astype(jnp.int32), share)


def _gumbel(keys: jax.Array, positions: jax.Array, count: int) -> jax.Array:
    """Returns Gumbel noise float32[W, count], one row for each key and position.

    The noise depends on the position and not on the step, because the number of steps up to a
    position depends on the drafts that were accepted. So neither drafts nor neighbours in the batch
    change a token.
    """

    def row(key_data: jax.Array, position: jax.Array) -> jax.Array:
        key = jax.random.wrap_key_data(key_data, impl="threefry2x32")
        # "high", because a uniform number of 23 bits is too coarse for the tail that decides.
        return jax.random.gumbel(jax.random.fold_in(key, position), (count,), mode="high")

    return jax.vmap(row)(keys, positions)
