"""What a position does to queries and keys: it rotates them, and may scale queries."""

import jax
import jax.numpy as jnp

from emsjax.models.config import DecoderConfig, Rope
from emsjax.pallas_kernels.backends import target_platform


def rotary_angles(
    config: DecoderConfig, positions: jax.Array
) -> tuple[jax.Array, jax.Array] | None:
    """Returns cosine and sine for `positions` int32[T], float32[T, 1, H / 2] each.

    If layers differ, the results have a leading axis for `config.rope_tables`. Returns None for a
    model with learned positions.
    """
    if config.rope_tables:
        each = [_angles(rope, positions) for rope in config.rope_tables]
        return jnp.stack([cos for cos, _ in each]), jnp.stack([sin for _, sin in each])
    return None if config.rope is None else _angles(config.rope, positions)


def query_factor(config: DecoderConfig, positions: jax.Array) -> jax.Array | None:
    """Returns float32[T, 1, 1], the factor on the queries at `positions`, or None for none."""
    if config.query_growth is None:
        return None
    beta, length = config.query_growth
    lengths = jnp.floor(positions.astype(jnp.float32) / length)
    return 1 + beta * jnp.log1p(lengths)[:, None, None]


def _angles(rope: Rope, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    frequencies = jnp.asarray(rope.inverse_frequencies, jnp.float32)
    angles = positions.astype(jnp.float32)[:, None, None] * frequencies[None, None]
    return jnp.cos(angles) * rope.attention_factor, jnp.sin(angles) * rope.attention_factor


def rotate(
    x: jax.Array, cos_sin: tuple[jax.Array, jax.Array] | None, interleaved: bool = False
) -> jax.Array:
    """Rotates pairs of lanes in each head of x [T, heads, H].

    Args:
      x: queries or keys.
      cos_sin: cosine and sine [T, 1, pairs], for the first lanes of a head if there are fewer than
        H / 2 pairs; None returns x unchanged.
      interleaved: whether pairs are neighbours, and not halves apart.
    """
    if cos_sin is None:
        return x
    cos, sin = cos_sin
    turned_lanes = 2 * cos.shape[-1]
    if turned_lanes < x.shape[-1]:
        turned, still = jnp.split(x, (turned_lanes,), axis=-1)
        return jnp.concatenate([rotate(turned, cos_sin, interleaved), still], axis=-1)
    wide = x.astype(jnp.float32)
    # On a CPU the second form rounded differently in programs for different batches.
    if interleaved or target_platform() == "cpu":
        halves = wide[..., ::2], wide[..., 1::2]
        first, second = halves if interleaved else jnp.split(wide, 2, axis=-1)
        pair = first * cos - second * sin, second * cos + first * sin
        turned = jnp.stack(pair, axis=-1) if interleaved else jnp.concatenate(pair, axis=-1)
        return turned.reshape(x.shape).astype(x.dtype)
    # Both halves at once: a TPU takes two microseconds for each operation, however small.
    cos, sin = jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)
    return (wide * cos + jnp.roll(wide, turned_lanes // 2, axis=-1) * sin).astype(x.dtype)
