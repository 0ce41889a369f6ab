"""One block of a slot's keys and values in the attention kernel for Hopper: scores and softmax."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from emsjax.pallas_kernels import hopper
from emsjax.pallas_kernels.int8_cache import RESTORED
from emsjax.pallas_kernels.ragged_attention.sections import LOG2_E, MASKED, Options
from emsjax.pallas_kernels.ragged_attention.tiles import Window, lag

# Numbers of an int8 head that are converted at a time.
INT8_MULTIPLE = 64


class Shared(NamedTuple):
    """Shared memory of a thread block, besides its blocks of keys and values."""

    q: Any  # [M, H]
    ancestors: Any  # int32[M]
    out: Any  # float32[M, a part of H]
    top: Any  # float32[M]
    total: Any  # float32[M]
    arrived: Any  # barrier of the copies into `ancestors` and `q`
    k: Any = None  # [kv, H], keys of an int8 cache in the dtype of `q`
    v: Any = None  # the same of values


class Running(NamedTuple):
    """The softmax so far. Scores are multiplied by log2(e), so weights are powers of 2."""

    out: Any  # float32[M, H], weighted sum of values
    top: Any  # float32[M], largest score
    total: Any  # float32[M], sum of weights


def visible_tokens(
    shape: tuple[int, int],
    block_start: jax.Array,
    q_start: jax.Array,
    row_start: jax.Array,
    window: Window | None,
    ancestors: jax.Array | None,
    holes: jax.Array | None,
    rows: int,
) -> jax.Array:
    """Returns which tokens each row attends to, bool[M, tokens]; M is heads times rows."""
    iota = functools.partial(plgpu.broadcasted_iota, jnp.int32, shape, layout=plgpu.Layout.WGMMA)
    column = iota(1) + block_start
    # The M axis repeats the tile's rows for each head, and their number is a power of two.
    row = (iota(0) & (rows - 1)) + row_start
    visible = column <= row
    if window is not None:
        if ancestors is not None:
            layout = plgpu.Layout.WGMMA.reduce(1)
            places = plgpu.broadcasted_iota(jnp.int32, shape[:1], 0, layout=layout) & (rows - 1)
            behind = lag(ancestors, places + (row_start - q_start))
            row -= jax.lax.broadcast_in_dim(behind, shape, [0])
        visible &= window.shows(column, row)
    if ancestors is not None:
        draft = column - q_start
        bits = jax.lax.broadcast_in_dim(ancestors, shape, [0])
        bit = jax.lax.shift_right_logical(bits, jnp.clip(draft, 0, 31)) & 1
        visible &= (draft < 0) | (bit == 1)
    if holes is not None:
        visible &= jax.lax.broadcast_in_dim(holes, shape, [1]) == 0
    return visible


def widened(source: Any, target: Any) -> Any:
    """Writes int8 keys or values to shared memory as numbers that the tensor cores multiply.

    Warps may still multiply with the other of the two targets, but not with this one: each of them
    passed the barrier of `commit_smem` for the other since.
    """
    if target is None:
        return source
    # Not all at once, because that would take almost all registers.
    for lane in range(0, target.shape[1], INT8_MULTIPLE):
        lanes = slice(None), pl.ds(lane, INT8_MULTIPLE)
        target.at[lanes][...] = hopper.widened(source.at[lanes], target.dtype)
    plgpu.commit_smem()
    return target


def scores_of(
    q: Any, k: Any, visible: jax.Array, options: Options, factors: jax.Array | None
) -> jax.Array:
    """Returns masked scores [M, tokens], multiplied by log2(e); `factors` are those of the keys."""
    scores = hopper.product_transposed(q, k)
    if factors is not None:
        scores *= jax.lax.broadcast_in_dim(factors, scores.shape, [1])
    if options.soft_cap is None:
        scores *= options.scale * LOG2_E
    else:
        cap = options.soft_cap
        scores = jnp.tanh(scores * (options.scale / cap)) * (cap * LOG2_E)
    return jnp.where(visible, scores, MASKED)


def add_block(
    running: Running, scores: jax.Array, v: Any, shared: Shared, factors: jax.Array | None
) -> Running:
    """Adds one block to the softmax; `factors` are those of the values."""
    top = jnp.maximum(running.top, scores.max(axis=1))
    decay = jnp.exp2(running.top - top)
    weights = jnp.exp2(scores - jax.lax.broadcast_in_dim(top, scores.shape, [0]))
    scaled = weights
    if factors is not None:
        scaled = weights * jax.lax.broadcast_in_dim(factors * RESTORED, scores.shape, [1])
    gained = hopper.product(scaled.astype(shared.q.dtype), widened(v, shared.v))
    gained = gained if factors is None else gained * (1 / RESTORED)
    out = running.out * jax.lax.broadcast_in_dim(decay, running.out.shape, [0]) + gained
    return Running(out, top, running.total * decay + weights.sum(axis=1))


def clear_past(end: jax.Array, v: Any) -> None:
    """Writes zeros after the last valid token, where v may be NaN: 0 * NaN is NaN."""
    values = plgpu.layout_cast(v[...], plgpu.Layout.WGMMA)
    token = plgpu.broadcasted_iota(jnp.int32, v.shape, 0, layout=plgpu.Layout.WGMMA)
    v[...] = jnp.where(token < end, values, jnp.zeros_like(values))
    plgpu.commit_smem()


def clear_scales(end: jax.Array, scales: jax.Array) -> jax.Array:
    """Returns scales of values with zeros after the last valid token, where they may be NaN."""
    layout = plgpu.Layout.WGMMA.reduce(0)
    token = plgpu.broadcasted_iota(jnp.int32, scales.shape, 0, layout=layout)
    return jnp.where(token < end, scales, jnp.zeros_like(scales))


def empty(rows: int, head_dim: int) -> Running:
    """Returns the softmax of no tokens."""
    by_row = functools.partial(plgpu.layout_cast, new_layout=plgpu.Layout.WGMMA.reduce(1))
    return Running(
        plgpu.layout_cast(jnp.zeros((rows, head_dim), jnp.float32), plgpu.Layout.WGMMA),
        by_row(jnp.full((rows,), MASKED, jnp.float32)),
        by_row(jnp.zeros((rows,), jnp.float32)),
    )
