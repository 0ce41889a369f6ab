"""Drawing a token with the Gumbel-max trick, its noise a function of key and place."""

import jax
import jax.numpy as jnp

from emsjax.sampling.blocks import BLOCK, block_of, by_blocks


def draw(x: jax.Array, keys: jax.Array, positions: jax.Array) -> jax.Array:
    """Draws a token from each row, int32[W], with probability proportional to exp(x).

    First the block of the vocabulary, then the token in it: noise for V / 128 blocks and 128 tokens
    instead of V tokens, and the same distribution. The likeliest token of nearly the same x is
    nearly always the same token, which is what a drafter that samples relies on.

    Args:
      x: float32[W, V], at most 0; -inf for what is not to be drawn.
      keys: uint32[W, 2], the noise of each row's slot.
      positions: int32[W], the row's place in its sample.
    """
    blocks = by_blocks(x)
    noise = _gumbel(keys, positions, blocks.shape[1] + BLOCK)
    mass = jnp.log(jnp.exp(blocks).sum(axis=2))
    block = jnp.argmax(mass + noise[:, :-BLOCK], axis=1).astype(jnp.int32)
    lane = jnp.argmax(block_of(block, blocks) + noise[:, -BLOCK:], axis=1).astype(jnp.int32)
    return block * BLOCK + lane


def _gumbel(keys: jax.Array, positions: jax.Array, count: int) -> jax.Array:
    """Gumbel noise float32[W, count], a row for each key and position."""

    def row(key_data: jax.Array, position: jax.Array) -> jax.Array:
        key = jax.random.wrap_key_data(key_data, impl="threefry2x32")
        # "high": with 23 bits a uniform number is too coarse for the tail that decides.
        return jax.random.gumbel(jax.random.fold_in(key, position), (count,), mode="high")

    return jax.vmap(row)(keys, positions)
