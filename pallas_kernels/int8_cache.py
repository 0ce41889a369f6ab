"""The K/V cache in int8, with one float32 scale per token and head.

A token's numbers and scales depend on nothing but its own keys and values. So they are the same
whether it was read in a prompt, drafted, or decoded alone.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from emsjax.pallas_kernels.backends import target_platform
from emsjax.pallas_kernels.kv_layout import read_kv, rows_per_token
from emsjax.pallas_kernels.kv_rows import LANES, scale_rows

# XLA replaces some divisions by products with a rounded reciprocal. The products here leave it no
# choice, so that all programs quantise alike.
_STEP = 1 / 127
# The reciprocals of smaller scales are infinite, or differ between platforms. Such heads are zeros.
_SMALLEST = 1e-37
# About the largest int8 number, and a power of two, so that no product with it is rounded. Weights
# as large as the values were keep float16 from rounding small ones to nothing in attention.
RESTORED = 128.0


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int8Cache:
    """Keys and values, kept as int8 numbers and the scales to multiply them by.

    The scales of 128 tokens share a row of lanes, as their scores do in attention. Among a token's
    numbers, a scale would take a whole row of 128 lanes on TPU.

    Attributes:
      values: int8[L, B, S, R, 128], see `kv_layout`.
      scale: float32[L, B, S / 128, 2 K, 128]: for each 128 tokens a row for each key head, then one
        for each value head, then padding. S / 128 is rounded up.
    """

    values: Any  # jax.Array, or its shape
    scale: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the values, [L, B, S, R, 128]."""
        return self.values.shape

    @property
    def dtype(self) -> jnp.dtype:
        """The type of the values, int8."""
        return self.values.dtype


Cache = jax.Array | Int8Cache


class Block(NamedTuple):
    """Keys and values of consecutive tokens of a slot.

    Attributes:
      k: [K, tokens, H] in the dtype that is computed in.
      v: the same of the values.
      k_scale: float32[K, tokens], factors on the keys; None for 1.
      v_scale: the same on the values.
    """

    k: jax.Array
    v: jax.Array
    k_scale: jax.Array | None = None
    v_scale: jax.Array | None = None


def int8_cache_spec(
    num_layers: int, num_slots: int, capacity: int, num_kv_heads: int, head_dim: int
) -> Int8Cache:
    """Returns the shapes of an int8 cache for B slots of S tokens on the target platform."""
    place = (num_layers, num_slots)
    rows = rows_per_token(num_kv_heads, head_dim, int8=True)
    scales = -(-capacity // LANES), scale_rows(num_kv_heads, target_platform())
    return Int8Cache(
        jax.ShapeDtypeStruct((*place, capacity, rows, LANES), jnp.int8),
        jax.ShapeDtypeStruct((*place, *scales, LANES), jnp.float32),
    )


def quantise(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Quantises heads [T, K, H].

    Returns:
      int8[T, K, H] and float32[T, K]. The scale of a head that holds NaN or infinity is NaN.
    """
    wide = x.astype(jnp.float32)
    scale, finer = scale_of_largest(jnp.abs(wide).max(axis=2))
    values = jnp.round(jnp.where(finer[..., None] > 0, wide * finer[..., None], 0.0))
    return values.astype(jnp.int8), scale


def scale_of_largest(largest: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns scales, and what to multiply numbers by, for the largest magnitudes of heads.

    Args:
      largest: float32; NaN or infinity for a head whose scale is to be NaN.
    """
    scale = jnp.where(largest < jnp.inf, largest * _STEP, jnp.nan)
    return scale, jnp.where(scale > _SMALLEST, 1 / scale, 0.0)


def pack_scales(k_scale: jax.Array, v_scale: jax.Array, cache: Int8Cache) -> jax.Array:
    """Packs the scales of new keys and values, each [T, K], into the rows of `cache.scale`."""
    scales = jnp.concatenate([k_scale, v_scale], axis=1)
    return jnp.pad(scales, ((0, 0), (0, cache.scale.shape[3] - scales.shape[1])))


def read_block(
    cache: Cache,
    layer: jax.Array,
    slot: jax.Array,
    start: jax.Array,
    length: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: jnp.dtype,
) -> Block:
    """Reads `length` tokens of a slot, starting at position `start`, to compute with in `dtype`.

    `length` is a multiple or a divisor of 128, and divides `start`.
    """
    place = (layer, slot, start, length, num_kv_heads, head_dim)
    if not isinstance(cache, Int8Cache):
        return Block(*read_kv(cache, *place, dtype))
    k, v = read_kv(cache.values, *place, cache.dtype)
    scales = _read_scales(cache.scale, layer, slot, start, length)
    k_scale, v_scale = scales[:num_kv_heads], scales[num_kv_heads : 2 * num_kv_heads]
    return Block(k.astype(dtype), v.astype(dtype), k_scale, v_scale)


def _read_scales(
    scale: jax.Array, layer: jax.Array, slot: jax.Array, start: jax.Array, length: int
) -> jax.Array:
    """Returns the scales of `length` tokens, float32[2 K, length]."""
    rows = scale.shape[3]
    size = (1, 1, max(length // LANES, 1), rows, LANES)
    tiles = jax.lax.dynamic_slice(scale, (layer, slot, start // LANES, 0, 0), size)
    if target_platform() == "tpu":
        # As in `read_kv`, so that XLA does not change the layout of all scales.
        tiles = with_layout_constraint(tiles, Layout(tuple(range(tiles.ndim))))
    scales = tiles[0, 0].swapaxes(0, 1).reshape(rows, -1)
    if length >= LANES:
        return scales
    return jax.lax.dynamic_slice(scales, (0, start % LANES), (rows, length))
