"""Splits the rows of a fused query/key/value product into heads, in one Mosaic kernel.

XLA takes ten operations a layer for this, each of which costs a TPU more than a microsecond: most
of them change the place of a head among lanes, sublanes and tiles. Here a head is rolled to its
lanes once. The kernel normalises and rotates queries and keys, scales queries, lays them out as the
attention kernel reads them, and copies each row's K/V to its place in the cache, quantised for an
int8 cache.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from emsjax.pallas_kernels.kv_rows import LANES, scale_rows
from emsjax.pallas_kernels.manual_axes import result_like
from emsjax.pallas_kernels.norms import HeadNorms
from emsjax.pallas_kernels.ragged_attention.lane_pieces import LanePieces, lane_of, within
from emsjax.pallas_kernels.ragged_attention.lanes import places, width
from emsjax.pallas_kernels.ragged_attention.tpu_head_norms import Group, normed, scales_of
from emsjax.pallas_kernels.ragged_attention.tpu_head_scales import quantised, turn
from emsjax.pallas_kernels.tpu_memory import last_in_hbm
from emsjax.pallas_kernels.tpu_registers import SUBLANES


class NormShape(NamedTuple):
    """The static part of `HeadNorms`.

    Attributes:
      eps: see there.
      offset: see there.
      whole: whether all heads of a row are normalised together.
    """

    eps: float
    offset: bool
    whole: bool


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
      norm: of queries and keys; None for none.
      scaled: whether queries have a factor.
      int8: whether K/V are quantised.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rows: int
    height: int
    turned: int = 0
    interleaved: bool = False
    norm: NormShape | None = None
    scaled: bool = False
    int8: bool = False

    @property
    def heads_of_key(self) -> int:
        """The query heads that share a key head."""
        return self.num_heads // self.num_kv_heads

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

    @property
    def cached(self) -> list[Group]:
        """The lanes of a token's K/V that are quantised together."""
        starts = range(0, 2 * (self.values - self.keys), self.head_dim)
        return [Group(start, start + self.head_dim) for start in starts]

    @property
    def normed(self) -> list[Group]:
        """The lanes that are normalised together."""
        if self.norm is not None and self.norm.whole:
            return [Group(0, self.keys), Group(self.keys, self.values)]
        starts = range(0, self.values, self.head_dim)
        return [Group(start, start + self.head_dim) for start in starts]


def _factors(shape: HeadsShape, cos: jax.Array, sin: jax.Array) -> list[jax.Array]:
    """Returns factors of a row's lanes and of their partners, float32[tables * T, period] each.

    They are the same in all layers, so XLA computes them before the loop over the layers.
    """
    still = shape.head_dim - shape.turned
    if shape.interleaved:
        cos, sin = (jnp.stack(pair, axis=-1) for pair in ((cos, cos), (-sin, sin)))
    else:
        cos, sin = (jnp.concatenate(pair, axis=-1) for pair in ((cos, cos), (-sin, sin)))
    copies = shape.period // shape.head_dim

    def laid_out(x: jax.Array) -> jax.Array:
        x = jnp.pad(x.reshape(-1, shape.turned), ((0, 0), (0, still)))
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


def _scaled(lanes: LanePieces, factor: jax.Array, shape: HeadsShape, dtype: Any) -> LanePieces:
    """Multiplies queries by a factor float32[rows, 1] of their row."""
    found = list(lanes.pieces)
    for number in range(pl.cdiv(shape.keys, LANES)):
        piece, left = found[number], shape.keys - number * LANES
        product = (piece * factor).astype(dtype).astype(jnp.float32)
        found[number] = jnp.where(lane_of(piece) < left, product, piece)
    return LanePieces(found)


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
    stacked: Any,
    table: Any,
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
      stacked: the layer whose factors of norms to use.
      table: which of the tables of the rotation to use.
      slots: int32[T].
      positions: int32[T], each row's place in its slot's cache.
      used: int32[1].
      first_rows: int32[tiles].
      x: rows of the product [T, (N + 2K)H].
      *refs: factors of norms, of the rotation and of queries, if there are any, and the cache; the
        results; and scratch.
      shape: static arguments.
    """
    given = iter(refs)
    scales = [next(given), next(given)] if shape.norm else []
    angles = [next(given), next(given)] if shape.turned else []
    factors = next(given) if shape.scaled else None
    next(given)
    queries, cache = next(given), next(given)
    scales_across, new_scales = (next(given), next(given)) if shape.int8 else (None, None)
    spread, tile, new_wide, new, written = given
    num_rows, dtype = x.shape[0], x.dtype
    keys, heads_of_key = places(shape.num_kv_heads, shape.head_dim)[0], shape.heads_of_key

    rows_of_scales = [LanePieces(_row(each, stacked[0] % SUBLANES)) for each in scales]
    spread_scales = scales_of(shape.normed, shape.keys, *rows_of_scales) if scales else []

    def split(number: Any, _: None) -> None:
        rows = pl.ds(number * SUBLANES, SUBLANES)
        lanes = LanePieces(_pieces(x, rows))
        if shape.norm is not None:
            how = shape.norm.eps, shape.norm.offset, dtype
            lanes = normed(lanes, spread_scales, shape.normed, *how)
        if shape.turned:
            there = pl.ds(table[0] * num_rows + number * SUBLANES, SUBLANES)
            cos, sin = (LanePieces(_pieces(angle, there)) for angle in angles)
            lanes = _rotated(lanes, cos, sin, shape, dtype)
        if factors is not None:
            lanes = _scaled(lanes, factors[rows], shape, dtype)
        token = [_token(lanes, part, shape) for part in range(new_wide.shape[1])]
        if new_scales is not None:
            token, new_scales[rows] = quantised(token, shape.cached)
        for part, numbers in enumerate(token):
            new_wide[rows, part, :] = numbers
        for head in range(shape.num_heads):
            place = keys[head // heads_of_key]
            for part in range(shape.lanes // LANES):
                begin = place.lane - part * LANES
                found = lanes.at(head * shape.head_dim - begin)
                own = within(lane_of(found), begin, begin + shape.head_dim)
                spread[head, part, rows] = jnp.where(own, found, 0.0)

    jax.lax.fori_loop(0, num_rows // SUBLANES, split, None)
    new[...] = new_wide[...].astype(new.dtype)
    if scales_across is not None:
        turn(new_scales, scales_across)

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


def _row(array: Any, row: Any) -> list[jax.Array]:
    """Returns one of eight rows in pieces of 128 lanes, in all eight rows."""
    found = []
    for piece in _pieces(array, slice(None)):
        own = jax.lax.broadcasted_iota(jnp.int32, piece.shape, 0) == row
        one = jnp.where(own, piece, 0.0).sum(axis=0, keepdims=True)
        found.append(jnp.broadcast_to(one, piece.shape))
    return found


def _block_of_layer(_: Any, __: Any, layer: Any, *___: Any) -> tuple[Any, int]:
    return layer[0] // SUBLANES, 0


def split_heads(
    x: jax.Array,  # [T, (N + 2K)H]
    norms: HeadNorms | None,
    angles: tuple[jax.Array, jax.Array] | None,  # [T, 1, pairs] or [tables, T, 1, pairs] each
    table: jax.Array | None,  # int32[]
    factor: jax.Array | None,  # float32[T, 1, 1]
    cache: jax.Array,  # [L, B, S, R, 128], or the values of an int8 cache
    layer: jax.Array,  # int32[]
    slot_ids: jax.Array,  # int32[T]
    places: jax.Array,  # int32[T]
    used: jax.Array,  # int32[1]
    first_rows: jax.Array,  # int32[tiles]
    shape: HeadsShape,
) -> list[jax.Array]:
    """Returns the queries in tiles [tiles, K, height, W], see `cut_rows`, and the cache.

    A tile's rows past its last one hold anything. For an int8 cache the scales are the third
    result, a row for each head and a lane for each of the packed rows, float32[T / 128, R, 128].
    """
    num_rows = x.shape[0]
    here, anywhere = (pl.BlockSpec(memory_space=space) for space in (pltpu.VMEM, pl.ANY))
    inputs, specs, stacked = [x], [here], layer
    if norms is not None:
        # As many layers as a register has rows, so that blocks are whole tiles of the arrays.
        scales = [norms.queries, norms.keys]
        specs += [pl.BlockSpec((SUBLANES, each.shape[1]), _block_of_layer) for each in scales]
        inputs, stacked = [x, *scales], norms.layer
    if angles is not None:
        inputs += _factors(shape, *angles)
    if factor is not None:
        inputs.append(factor.astype(x.dtype).astype(jnp.float32).reshape(num_rows, 1))
    specs += [here] * (len(inputs) - len(specs))
    numbers = (jnp.reshape(n, 1) for n in (layer, stacked, 0 if table is None else table))
    scalars = (*numbers, slot_ids, places, used, first_rows)
    tile = (shape.num_kv_heads, shape.height, shape.lanes)
    token, parts = (num_rows, *cache.shape[3:]), shape.lanes // LANES
    queries = result_like((first_rows.shape[0], *tile), x.dtype, inputs, cache)
    scales_shape = pl.cdiv(num_rows, LANES), scale_rows(shape.num_kv_heads, "tpu"), LANES
    of_scales = [result_like(scales_shape, jnp.float32, inputs, cache)] if shape.int8 else []
    call = pl.pallas_call(
        functools.partial(_kernel, shape=shape),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(1,),
            in_specs=[*specs, anywhere],
            out_specs=[here, anywhere, *(here for _ in of_scales)],
            scratch_shapes=[
                *(pltpu.VMEM((scales_shape[0] * LANES, LANES), each.dtype) for each in of_scales),
                pltpu.VMEM((shape.num_heads, parts, num_rows + shape.rows, LANES), jnp.float32),
                pltpu.VMEM(tile, jnp.float32),
                pltpu.VMEM(token, jnp.float32),
                pltpu.VMEM(token, cache.dtype),
                pltpu.SemaphoreType.DMA(()),
            ],
        ),
        out_shape=[queries, result_like(cache.shape, cache.dtype, inputs, cache), *of_scales],
        input_output_aliases={len(scalars) + len(inputs): 1},
        cost_estimate=pl.CostEstimate(
            flops=6 * x.size,
            transcendentals=0,
            bytes_accessed=2 * math.prod(token) * cache.dtype.itemsize,
        ),
        name="split_heads",
    )
    return list(last_in_hbm(call)(*scalars, *inputs, cache))


def bytes_of_heads(
    shape: HeadsShape, num_rows: int, tiles: int, token_rows: int, itemsize: int
) -> int:
    """Returns the bytes of VMEM that queries and tokens take, in float32 and as results."""
    queries = tiles * shape.num_kv_heads * shape.height * shape.lanes * itemsize
    spread = (num_rows + shape.rows) * shape.num_heads * shape.lanes * 4
    return queries + spread + num_rows * token_rows * LANES * (4 + itemsize)
