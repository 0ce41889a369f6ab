"""Adds one block of keys and values to the running softmax of a tile, in a TPU kernel.

The kernel scores all heads, then weighs all heads, then adds the values of all heads. Products take
a long time to leave the matrix units, and this order always has another head to work on meanwhile.
It needs a third fewer instruction words than finishing one head after the other.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from emsjax.pallas_kernels.kv_rows import LANES
from emsjax.pallas_kernels.ragged_attention.lanes import Heads, places, together
from emsjax.pallas_kernels.ragged_attention.tiles import Window, lag
from emsjax.pallas_kernels.ragged_attention.tuning import TPUBlocks

# The score of a masked token. It is finite because a row whose first blocks are all masked would
# otherwise compute inf - inf.
MASKED = -1e30
CLEARED_AT_ONCE = 8


class Options(NamedTuple):
    """The static arguments of a call.

    `packed` is whether the results leave the kernel as packed rows, and not as tiles.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    windowed: bool
    tree: bool
    holed: bool
    int8: bool
    sinks: bool
    soft_cap: float | None
    blocks: TPUBlocks
    packed: bool


class Running(NamedTuple):
    """The softmax of a tile so far, in VMEM, for K heads with M rows times query heads each."""

    top: Any  # float32[K, M, 128], largest score, repeated in all lanes
    total: Any  # float32[K, M, 128], sum of weights
    out: Any  # float32[K, M, W], weighted sum of values
    weights: Any  # float32[K, M, block], scores of the block, then its weights
    decay: Any  # float32[K, M, 128], factor on the weights of all blocks before this one

    @classmethod
    def scratch(cls, num_kv_heads: int, height: int, width: int, block: int) -> "Running":
        """Returns the shapes to allocate in VMEM."""
        sizes = (LANES, LANES, width, block, LANES)
        return cls(*(pltpu.VMEM((num_kv_heads, height, size), jnp.float32) for size in sizes))

    def begin(self, sinks: Any) -> None:
        """Resets to the softmax of no tokens, or of sinks float32[K, M, 128] alone."""
        empty = sinks is None
        self.top[...] = jnp.full_like(self.top, MASKED) if empty else sinks[...]
        self.total[...] = jnp.full_like(self.total, 0.0 if empty else 1.0)
        self.out[...] = jnp.zeros_like(self.out)

    def finish(self, out: Any) -> None:
        """Writes the weighted mean to `out` [K, M, W], zeros for rows that attend to nothing."""
        total = self.total[...]
        total = jnp.where(total == 0, 1.0, total)
        for number in range(out.shape[-1] // LANES):
            lanes = _lanes(number)
            out[:, :, lanes] = (self.out[:, :, lanes] / total).astype(out.dtype)


def add_block(
    q: Any, block: Any, scales: Any, visible: jax.Array, running: Running, options: Options
) -> None:
    """Adds one block to the running softmax.

    Args:
      q: queries [K, M, W], see `lanes.spread_queries`.
      block: keys and values [parts, tokens, rows of a part, 128].
      scales: float32[tokens / 128, R, 128], their scales if they are int8, otherwise None.
      visible: bool[M, tokens], whether each row attends to each token.
      running: the softmax so far, updated in place.
      options: static arguments of the call.
    """
    packing = 4 // block.dtype.itemsize
    keys, values = places(options.num_kv_heads, options.head_dim)
    for heads in together(keys, packing):
        _score(heads, q, block, scales, visible, running, options)
    _weigh(running)
    for heads in together(values, packing):
        _gain(heads, q.dtype, block, scales, running, options)


def clear(first: jax.Array, block: Any) -> None:
    """Writes zeros from a token to the end of a block [parts, tokens, rows of a part, 128].

    The buffer may hold NaN there, or tokens of another slot. Weights of zero are not enough,
    because 0 * NaN and 0 * inf are NaN.
    """

    def clear_tokens(start: jax.Array, count: int) -> None:
        place = block.at[:, pl.ds(start, count)]
        place[...] = jnp.zeros_like(place)

    aligned = pl.cdiv(first, CLEARED_AT_ONCE)
    one_by_one = functools.partial(clear_tokens, count=1)
    jax.lax.fori_loop(first, aligned * CLEARED_AT_ONCE, lambda t, _: one_by_one(t), None)
    end = block.shape[1] // CLEARED_AT_ONCE
    several = functools.partial(clear_tokens, count=CLEARED_AT_ONCE)
    jax.lax.fori_loop(aligned, end, lambda n, _: several(n * CLEARED_AT_ONCE), None)


def clear_scales(first: jax.Array, scales: Any) -> None:
    """Writes zeros from a token to the end of a block's scales [tokens / 128, R, 128]."""
    tile, lane = (jax.lax.broadcasted_iota(jnp.int32, scales.shape, axis) for axis in (0, 2))
    scales[...] = jnp.where(tile * LANES + lane < first, scales[...], 0.0)


def visible_tokens(
    shape: tuple[int, int],
    block_start: jax.Array,
    q_start: jax.Array,
    row_start: jax.Array,
    window: Window | None,
    ancestors: Any,
    rows: int,
) -> jax.Array:
    """Returns which tokens each row attends to, bool[M, tokens]; M is heads times rows."""
    column = block_start + jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    # The M axis repeats the tile's rows for each head, and their number is a power of two.
    row = row_start + (jax.lax.broadcasted_iota(jnp.int32, shape, 0) & (rows - 1))
    visible = column <= row
    if window is not None:
        if ancestors is not None:
            places = jax.lax.broadcasted_iota(jnp.int32, (shape[0], 1), 0) & (rows - 1)
            row -= lag(ancestors[:, :1], row_start - q_start + places)
        visible &= window.shows(column, row)
    if ancestors is not None:
        draft = column - q_start
        bit = jax.lax.shift_right_logical(ancestors[:, :1], jnp.clip(draft, 0, 31)) & 1
        visible &= (draft < 0) | (bit == 1)
    return visible


def _score(
    heads: list[Heads],
    q: Any,
    block: Any,
    scales: Any,
    visible: jax.Array,
    running: Running,
    options: Options,
) -> None:
    """Writes the masked scores of all rows for KV heads whose keys are loaded together."""
    for tokens in _chunks(options.blocks.kv):
        rows = _Rows(block, tokens, q.dtype)
        for some in heads:
            queries = q[some.first : some.end].reshape(-1, q.shape[2])
            products = [
                _product(queries[:, _lanes(number)], rows[row], 1)
                for number, row in enumerate(some.rows)
            ]
            scores = functools.reduce(jnp.add, products) * options.scale
            scores = scores.reshape(some.end - some.first, -1, scores.shape[1])
            if scales is not None:
                scores = scores * _factors(scales, tokens, some.first, some.end)
            if options.soft_cap is not None:
                scores = options.soft_cap * jnp.tanh(scores / options.soft_cap)
            masked = jnp.where(visible[None, :, tokens], scores, MASKED)
            running.weights[some.first : some.end, :, tokens] = masked


def _weigh(running: Running) -> None:
    """Turns the scores into weights and computes the decay of all earlier weights."""
    scores, top = running.weights[...], running.top[...]
    new_top = jnp.maximum(top, scores.max(axis=2, keepdims=True))
    weights = jnp.exp(scores - new_top[:, :, :1])
    decay = jnp.exp(top - new_top)
    running.top[...] = new_top
    running.total[...] = running.total[...] * decay + weights.sum(axis=2, keepdims=True)
    running.weights[...], running.decay[...] = weights, decay


def _gain(
    heads: list[Heads],
    dtype: jnp.dtype,
    block: Any,
    scales: Any,
    running: Running,
    options: Options,
) -> None:
    """Adds the block's weighted values for KV heads whose values are loaded together."""
    gained: dict[tuple[Heads, int], jax.Array] = {}
    for tokens in _chunks(options.blocks.kv):
        rows = _Rows(block, tokens, dtype)
        for some in heads:
            weights = running.weights[some.first : some.end, :, tokens]
            if scales is not None:
                # The scales of values follow those of keys.
                first, end = options.num_kv_heads + some.first, options.num_kv_heads + some.end
                weights = weights * _factors(scales, tokens, first, end)
            weights = weights.astype(dtype).reshape(-1, weights.shape[2])
            for number, row in enumerate(some.rows):
                product = _product(weights, rows[row], 0)
                earlier = gained.get((some, number))
                gained[some, number] = product if earlier is None else earlier + product
    for (some, number), values in gained.items():
        numbers, lanes = slice(some.first, some.end), _lanes(number)
        kept = running.out[numbers, :, lanes] * running.decay[numbers]
        running.out[numbers, :, lanes] = kept + values.reshape(kept.shape)


def _factors(scales: Any, tokens: slice, first: int, end: int) -> jax.Array:
    """Returns the scales of some heads and of 128 tokens, [heads, 1, tokens]."""
    return scales[tokens.start // LANES, first:end, :][:, None, :]


class _Rows:
    """Cache rows of a range of tokens, each loaded from VMEM once for all heads that share it."""

    def __init__(self, block: Any, tokens: slice, dtype: jnp.dtype):
        """Loads nothing yet.

        Args:
          block: keys and values [parts, tokens, rows of a part, 128].
          tokens: the range.
          dtype: of the loaded rows.
        """
        self._dtype = dtype
        self._packing = 4 // block.dtype.itemsize
        self._block, self._tokens, self._rows = block, tokens, block.shape[2]
        self._loaded: dict[tuple[int, int], jax.Array] = {}

    def __getitem__(self, row: int) -> jax.Array:
        """Returns one row of 128 lanes of every token, [tokens, 128]."""
        place = row // self._rows, row % self._rows // self._packing
        if place not in self._loaded:
            self._loaded[place] = self._load(*place)
        loaded = self._loaded[place]
        if self._packing == 1:
            return loaded
        if self._packing == 4:
            # Each 32-bit word holds four int8 rows, the first one in its lowest byte.
            word = pltpu.bitcast(loaded << (24 - 8 * (row % 4)), jnp.int32) >> 24
            return word.astype(jnp.float32).astype(self._dtype)
        # Each 32-bit word holds two 16-bit rows, the even one in its lower half. A 16-bit number in
        # the upper half, with zeros below, is the same number in float32.
        upper = loaded << 16 if row % 2 == 0 else loaded & jnp.uint32(0xFFFF0000)
        return pltpu.bitcast(upper, jnp.float32).astype(self._dtype)

    def _load(self, part: int, first: int) -> jax.Array:
        step = self._rows // self._packing
        start, stop = self._tokens.start * step + first, self._tokens.stop * step
        return _flat(self._block.at[part])[start:stop:step, :]


def _flat(block: Any) -> Any:
    """Views a block [tokens, R, 128] as a matrix of 128 lanes of 32-bit words.

    Two 16-bit rows, or four int8 rows, become one row.
    """
    tokens, rows, lanes = block.shape
    flat = block.reshape(tokens * rows, lanes)
    return flat if block.dtype == jnp.float32 else flat.bitcast(jnp.uint32)


def _product(left: jax.Array, right: jax.Array, contract_right: int) -> jax.Array:
    """Returns left [M, X] times right, contracted over X, in float32."""
    # Always set the precision: a caller's `jax.default_matmul_precision` would apply otherwise, and
    # the compiler rejects other precisions for 16-bit numbers.
    exact = left.dtype == jnp.float32
    precision = jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT
    return jax.lax.dot_general(
        left,
        right,
        (((1,), (contract_right,)), ((), ())),
        precision=precision,
        preferred_element_type=jnp.float32,
    )


def _lanes(number: int) -> slice:
    return slice(number * LANES, (number + 1) * LANES)


def _chunks(tokens: int) -> list[slice]:
    """Splits a block into as many tokens as a matrix unit holds; more would spill registers."""
    size = min(tokens, LANES)
    return [slice(first, first + size) for first in range(0, tokens, size)]
