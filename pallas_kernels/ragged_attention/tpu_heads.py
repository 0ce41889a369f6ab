"""Splits the rows of a fused query/key/value product into heads, in one Mosaic kernel.

XLA takes ten operations a layer for this, each of which costs a TPU more than a microsecond: most
of them change the place of a head among lanes, sublanes and tiles. Here a head is rolled to its
lanes once. The kernel rotates queries and keys, lays out the queries as the attention kernel reads
them, and copies each row's K/V to its place in the cache.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from emsjax.pallas_kernels.kv_rows import LANES
from emsjax.pallas_kernels.manual_axes import result_like
from emsjax.pallas_kernels.ragged_attention.lane_pieces import LanePieces, lane_of, within
from emsjax.pallas_kernels.ragged_attention.lanes import places, width
from emsjax.pallas_kernels.ragged_attention.tuning import SUBLANES


class HeadsShape(NamedTuple):
    """The static arguments of a call.

    Attributes:
      num_heads: N.
      num_kv_heads: K.
      head_dim: H.
      rows: of a tile, at most.
      height: of a tile, see `cut_rows`.
      turned: lanes of a head that are rotated.
      interleaved: whether pairs of lanes are neighbours, and not halves apart.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rows: int
    height: int
    turned: int = 0
    interleaved: bool = False

    @property
    def lanes(self) -> int:
        """W, the lanes of a query as it is laid out."""
        return width(self.num_kv_heads, self.head_dim)

    @property
    def keys(self) -> int:
        """The lane of the product with the first key head."""
        return self.num_heads * self.head_dim

    @property
    def values(self) -> int:
        """The lane of the product with the first value head."""
        return self.keys + self.num_kv_heads * self.head_dim

    @property
    def period(self) -> int:
        """Lanes after which the rotation's angles repeat, in whole rows of 128."""
        return math.lcm(self.head_dim, LANES)


def _factors(shape: HeadsShape, cos: jax.Array, sin: jax.Array) -> list[jax.Array]:
    """Returns the factors of a row's lanes and of their partners, float32[T, period] each.

    They are the same in all layers, so XLA computes them before the loop over the layers.
    """
    still = shape.head_dim - shape.turned
    if shape.interleaved:
        cos, sin = (jnp.stack(pair, axis=-1) for pair in ((cos, cos), (-sin, sin)))
    else:
        cos, sin = (jnp.concatenate(pair, axis=-1) for pair in ((cos, cos), (-sin, sin)))
    copies = shape.period // shape.head_dim

    def laid_out(x: jax.Array) -> jax.Array:
        x = jnp.pad(x.reshape(x.shape[0], -1), ((0, 0), (0, still)))
        return jnp.concatenate([x] * copies, axis=1)

    return [laid_out(cos), laid_out(sin)]


def _is_first(lane: jax.Array, start: int, shape: HeadsShape) -> jax.Array:
    """Returns which lanes are the first of their pair, in 128 lanes of the product."""
    if shape.interleaved:
        return lane & 1 == 0
    return _begins_head(lane, start, shape, shape.turned // 2)


def _begins_head(lane: jax.Array, start: int, shape: HeadsShape, count: int) -> jax.Array:
    """Returns which lanes are among the first `count` of their head."""
    heads = range(start // shape.head_dim, (start + LANES - 1) // shape.head_dim + 1)
    starts = [head * shape.head_dim - start for head in heads]
    return functools.reduce(jnp.logical_or, [within(lane, n, n + count) for n in starts])


def _rotated(
    lanes: LanePieces, cos: LanePieces, sin: LanePieces, shape: HeadsShape, dtype: Any
) -> LanePieces:
    """Rotates queries and keys, and leaves values as they are."""
    apart = 1 if shape.interleaved else shape.turned // 2
    turned = []
    for number, piece in enumerate(lanes.pieces):
        start = number * LANES
        if start >= shape.values:
            turned.append(piece)
            continue
        lane = lane_of(piece)
        partner = jnp.where(
            _is_first(lane, start, shape), lanes.at(start + apart), lanes.at(start - apart)
        )
        angle = start % shape.period
        result = piece * cos.at(angle) + partner * sin.at(angle)
        result = result.astype(dtype).astype(jnp.float32)
        # A factor of 0 would not keep an infinite partner out.
        if shape.turned < shape.head_dim:
            result = jnp.where(_begins_head(lane, start, shape, shape.turned), result, piece)
        if start + LANES > shape.values:
            result = jnp.where(lane < shape.values - start, result, piece)
        turned.append(result)
    return LanePieces(turned)


def _token(lanes: LanePieces, number: int, shape: HeadsShape) -> jax.Array:
    """Returns 128 lanes of the tokens' K/V, see `kv_layout`; `contained` has the rule for NaN."""
    size, start = shape.values - shape.keys, number * LANES
    own = lanes.at(shape.keys + start)
    lane = lane_of(own)
    sound = jnp.abs(own) < jnp.inf
    result = jnp.where(sound, own, 0.0)
    if start < size:
        values = lanes.at(shape.values + start)
        keys = jnp.where(jnp.abs(values) < jnp.inf, own, jnp.nan)
        result = keys if start + LANES <= size else jnp.where(lane < size - start, keys, result)
    if start + LANES > 2 * size:
        result = jnp.where(lane < 2 * size - start, result, 0.0)
    return result


def _kernel(
    layer: Any,
    slots: Any,
    positions: Any,
    used: Any,
    first_rows: Any,
    x: Any,
    *refs: Any,
    shape: HeadsShape,
) -> None:
    """See the module's docstring.

    Args:
      layer: the cache's layer.
      slots: int32[T].
      positions: int32[T], each row's place in its slot's cache.
      used: int32[1].
      first_rows: int32[tiles].
      x: rows of the product [T, (N + 2K)H].
      *refs: factors of the rotation, if there are any, and the cache; the results; and scratch.
      shape: static arguments.
    """
    given = iter(refs)
    angles = [next(given), next(given)] if shape.turned else []
    next(given)
    queries, cache, spread, tile, new_wide, new, written = given
    num_rows, dtype = x.shape[0], x.dtype
    heads_of_key = shape.num_heads // shape.num_kv_heads
    keys, _ = places(shape.num_kv_heads, shape.head_dim)

    def split(number: Any, _: None) -> None:
        rows = pl.ds(number * SUBLANES, SUBLANES)
        lanes = LanePieces(_pieces(x, rows))
        if shape.turned:
            cos, sin = (LanePieces(_pieces(angle, rows)) for angle in angles)
            lanes = _rotated(lanes, cos, sin, shape, dtype)
        for part in range(new_wide.shape[1]):
            new_wide[rows, part, :] = _token(lanes, part, shape)
        for head in range(shape.num_heads):
            place = keys[head // heads_of_key]
            for part in range(shape.lanes // LANES):
                begin = place.lane - part * LANES
                found = lanes.at(head * shape.head_dim - begin)
                own = within(lane_of(found), begin, begin + shape.head_dim)
                spread[head, part, rows] = jnp.where(own, found, 0.0)

    jax.lax.fori_loop(0, num_rows // SUBLANES, split, None)
    new[...] = new_wide[...].astype(dtype)

    def copy(row: Any) -> Any:
        target = cache.at[layer[0], slots[row], positions[row]]
        return pltpu.make_async_copy(new.at[row], target, written)

    jax.lax.fori_loop(0, used[0], lambda row, _: copy(row).start(), None)
    tile[...] = jnp.zeros_like(tile)

    def cut(number: Any, _: None) -> None:
        # An unused tile begins anywhere.
        rows = pl.ds(jnp.minimum(first_rows[number], num_rows), shape.rows)
        for head in range(shape.num_heads):
            key, place = divmod(head, heads_of_key)
            there = slice(place * shape.rows, (place + 1) * shape.rows)
            for part in range(shape.lanes // LANES):
                tile[key, there, part * LANES : (part + 1) * LANES] = spread[head, part, rows]
        queries[number] = tile[...].astype(dtype)

    jax.lax.fori_loop(0, queries.shape[0], cut, None)
    jax.lax.fori_loop(0, used[0], lambda row, _: copy(row).wait(), None)


def _pieces(array: Any, rows: Any) -> list[jax.Array]:
    """Reads rows as float32 pieces of 128 lanes, of which the last one ends with zeros."""
    found = []
    for start in range(0, array.shape[1], LANES):
        piece = array[rows, start : min(start + LANES, array.shape[1])].astype(jnp.float32)
        if (missing := LANES - piece.shape[1]) > 0:
            nothing = jnp.zeros((piece.shape[0], missing), jnp.float32)
            piece = jnp.concatenate([piece, nothing], axis=1)
        found.append(piece)
    return found


def split_heads(
    x: jax.Array,  # [T, (N + 2K)H]
    angles: tuple[jax.Array, jax.Array] | None,  # [T, 1, pairs] each
    cache: jax.Array,  # [L, B, S, R, 128]
    layer: jax.Array,  # int32[]
    slot_ids: jax.Array,  # int32[T]
    places: jax.Array,  # int32[T]
    used: jax.Array,  # int32[1]
    first_rows: jax.Array,  # int32[tiles]
    shape: HeadsShape,
) -> tuple[jax.Array, jax.Array]:
    """Returns the queries in tiles [tiles, K, height, W], see `cut_rows`, and the cache.

    A tile's rows past its last one hold anything.
    """
    num_rows = x.shape[0]
    scalars = (jnp.reshape(layer, 1), slot_ids, places, used, first_rows)
    inputs = [x] if angles is None else [x, *_factors(shape, *angles)]
    here, anywhere = (pl.BlockSpec(memory_space=space) for space in (pltpu.VMEM, pl.ANY))
    tile = (shape.num_kv_heads, shape.height, shape.lanes)
    token, parts = (num_rows, *cache.shape[3:]), shape.lanes // LANES
    queries = result_like((first_rows.shape[0], *tile), x.dtype, inputs, cache)
    call = pl.pallas_call(
        functools.partial(_kernel, shape=shape),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            in_specs=[*(here for _ in inputs), anywhere],
            out_specs=[here, anywhere],
            scratch_shapes=[
                pltpu.VMEM((shape.num_heads, parts, num_rows + shape.rows, LANES), jnp.float32),
                pltpu.VMEM(tile, jnp.float32),
                pltpu.VMEM(token, jnp.float32),
                pltpu.VMEM(token, cache.dtype),
                pltpu.SemaphoreType.DMA(()),
            ],
        ),
        out_shape=(queries, result_like(cache.shape, cache.dtype, inputs, cache)),
        input_output_aliases={len(scalars) + len(inputs): 1},
        cost_estimate=pl.CostEstimate(
            flops=6 * x.size,
            transcendentals=0,
            bytes_accessed=2 * math.prod(token) * cache.dtype.itemsize,
        ),
        name="split_heads",
    )
    found = call(*scalars, *inputs, cache)
    return found[0], found[1]


def bytes_of_heads(
    shape: HeadsShape, num_rows: int, tiles: int, token_rows: int, itemsize: int
) -> int:
    """Returns the bytes of VMEM that queries and tokens take, in float32 and as results."""
    queries = tiles * shape.num_kv_heads * shape.height * shape.lanes * itemsize
    spread = (num_rows + shape.rows) * shape.num_heads * shape.lanes * 4
    return queries + spread + num_rows * token_rows * LANES * (4 + itemsize)
