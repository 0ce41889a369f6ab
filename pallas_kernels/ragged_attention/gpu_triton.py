"""Ragged attention as a Triton kernel, for GPUs since Ampere that are not Hopper.

A program streams one section of a slot's cache for one tile, see `sections`. XLA's loop over blocks
would start a dozen kernels for every block of the longest sample.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from emsjax.pallas_kernels.int8_cache import RESTORED, Cache, Int8Cache
from emsjax.pallas_kernels.manual_axes import result_like
from emsjax.pallas_kernels.ragged_attention.sections import (
    LOG2_E,
    MASKED,
    Inputs,
    Options,
    Sums,
    first_scale,
    walk_of,
)
from emsjax.pallas_kernels.ragged_attention.sections import prepare as prepare_sections
from emsjax.pallas_kernels.ragged_attention.tiles import Walk, Window, lag
from emsjax.pallas_kernels.ragged_attention.tuning import WIDE, GPUBlocks, gpu_blocks, most_height
from emsjax.pallas_kernels.tensor_cores import DTYPES
from emsjax.pallas_kernels.triton_gpus import no_triton
from emsjax.pallas_kernels.triton_products import MISCOUNTED

# The width of a head is a multiple of this. Triton's arrays are powers of two long, so other heads
# get zeros for the rest, which are not in memory.
WIDTH_MULTIPLE, WIDEST_HEAD = 16, 256
# Tokens of a block of heads wider than `WIDE`: of more, an L4's shared memory does not hold two.
KV_OF_WIDE_HEADS = 32
# A product has at least this many rows.
LEAST_HEIGHT = 16
# Rows of a tile from which on its running sums take the registers of twice as many threads.
TALL, WARPS = 32, 4


class _Running(NamedTuple):
    """The softmax so far."""

    out: jax.Array  # float32[M, H], weighted sum of values
    top: jax.Array  # float32[M], largest score
    total: jax.Array  # float32[M], sum of weights


def unsupported(q: jax.Array, cache: Cache, num_kv_heads: int) -> str | None:
    """Returns why the kernel does not support these arguments, or None if it does."""
    _, num_heads, head_dim = q.shape
    group, capacity, too_old = num_heads // num_kv_heads, cache.shape[2], no_triton()
    int8 = isinstance(cache, Int8Cache)
    problems = (
        (too_old, too_old),
        (q.dtype not in DTYPES, f"q is {q.dtype}; the kernel requires bfloat16 or float16"),
        (
            not int8 and cache.dtype != q.dtype,
            f"the cache is {cache.dtype} and q is {q.dtype}; the kernel requires one dtype",
        ),
        (
            int8 and math.prod(cache.shape) in MISCOUNTED,
            f"the cache has {math.prod(cache.shape)} bytes, which jax would count in 32 bits with "
            "a sign",
        ),
        (capacity % 64, f"S is {capacity}; the kernel requires a multiple of 64"),
        (
            head_dim % WIDTH_MULTIPLE or head_dim > WIDEST_HEAD,
            f"heads are {head_dim} wide; the kernel requires a multiple of {WIDTH_MULTIPLE} up to "
            f"{WIDEST_HEAD}",
        ),
        (
            group > most_height(head_dim),
            f"{group} query heads share a KV head; the kernel allows {most_height(head_dim)}",
        ),
    )
    return next((reason for problem, reason in problems if problem), None)


def prepare(*arguments: Any, **sizes: Any) -> Callable[..., jax.Array]:
    """Implements `api.prepare`."""
    return prepare_sections(_call, triton_blocks, *arguments, **sizes)


def triton_blocks(
    capacity: int, head_dim: int, group: int, max_q_len: int, caches: int
) -> GPUBlocks:
    """Returns the kernel's block sizes: those for Hopper, but heights are powers of two.

    Wide heads have shorter blocks.
    """
    blocks = gpu_blocks(capacity, head_dim, group, max_q_len, caches, backend="gpu-triton")
    height = max(pl.next_power_of_2(blocks.q * group), LEAST_HEIGHT)
    kv = blocks.kv if head_dim <= WIDE else KV_OF_WIDE_HEADS
    return blocks._replace(kv=kv, height=height, stages=2)


def _call(inputs: Inputs, options: Options) -> Sums:
    """Runs the kernel for all tiles, KV heads and sections."""
    blocks = options.blocks
    num_tiles, num_kv_heads, height, head_dim = inputs.q.shape
    lanes = pl.next_power_of_2(head_dim)
    rest = (0, 0), (0, 0), (0, 0), (0, lanes - head_dim)
    inputs = inputs._replace(q=jnp.pad(inputs.q, rest))
    grid = (num_tiles, num_kv_heads, pl.cdiv(options.capacity, blocks.section))
    arrays = inputs.arrays()
    rows = result_like((*grid, height), jnp.float32, arrays)
    sums = Sums(result_like((*rows.shape, lanes), jnp.float32, arrays), rows, rows)
    of_program = pl.BlockSpec(
        (None, None, None, height), lambda tile, head, section: (tile, head, section, 0)
    )
    specs = Sums(
        pl.BlockSpec(
            (None, None, None, height, lanes),
            lambda tile, head, section: (tile, head, section, 0, 0),
        ),
        of_program,
        of_program,
    )
    call = pl.pallas_call(
        functools.partial(_kernel, options=options, head_dim=head_dim),
        out_shape=sums,
        grid=grid,
        in_specs=[pl.BlockSpec(memory_space=pl.ANY)] * len(arrays),
        out_specs=specs,
        compiler_params=triton.CompilerParams(
            num_warps=WARPS if height <= TALL else 2 * WARPS, num_stages=blocks.stages
        ),
        name="ragged_attention",
    )
    found: Sums = call(*arrays)
    return found._replace(out=found.out[..., :head_dim])


def _kernel(*refs: Any, options: Options, head_dim: int) -> None:
    """Processes one tile, KV head and section."""
    given = iter(refs)
    inputs, sums = Inputs.of(given, options), Sums(*given)
    tile, head, section = (pl.program_id(axis) for axis in range(3))
    facts = [fact[tile] for fact in inputs.facts]
    window = Window.read(inputs.window)
    steps = walk_of(inputs, options, window, tile, section)
    height, lanes = sums.out.shape
    add = functools.partial(_add_block, inputs, options, head_dim, facts, (tile, head, steps))
    empty = _Running(
        jnp.zeros((height, lanes), jnp.float32),
        jnp.full((height,), MASKED, jnp.float32),
        jnp.zeros((height,), jnp.float32),
    )
    running = jax.lax.fori_loop(steps.start, steps.end, add, empty)
    sums.top[...], sums.total[...] = running.top, running.total

    @pl.when(steps.start < steps.end)
    def _write() -> None:
        sums.out[...] = running.out


def _add_block(
    inputs: Inputs,
    options: Options,
    head_dim: int,
    facts: list[jax.Array],
    at: tuple[jax.Array, jax.Array, Walk],
    step: jax.Array,
    running: _Running,
) -> _Running:
    """Adds the block of one step to the softmax of tile and KV head `at`."""
    (tile, head, steps), (slot, _, _, kv_end), kv = at, facts, options.blocks.kv
    start = steps.block(step) * kv
    tokens = pl.ds(slot * options.capacity + start, kv)
    q = inputs.q[tile, head]
    places, layer = (head, options.num_kv_heads + head), inputs.layer[0]
    heads = (
        _read_head(inputs.cache.at[layer, tokens, pl.ds(place * head_dim, q.shape[1])], head_dim)
        for place in places
    )
    k, v = (head.astype(q.dtype) for head in heads)
    scores = product(q, k.T)
    if inputs.scales is not None:
        k_scale, v_scale = (
            inputs.scales[layer, pl.ds(first_scale(options, slot, start, place), kv)]
            for place in places
        )
        scores *= k_scale[None]
    if options.soft_cap is None:
        scores *= options.scale * LOG2_E
    else:
        cap = options.soft_cap
        scores = jnp.tanh(scores * (options.scale / cap)) * (cap * LOG2_E)
    visible = _visible(inputs, options, facts, tile, start, scores.shape)
    scores = jnp.where(visible, scores, MASKED)
    top = jnp.maximum(running.top, scores.max(axis=1))
    decay = jnp.exp2(running.top - top)
    weights = jnp.exp2(scores - top[:, None])
    # Values and scales after the end may be NaN, and 0 * NaN is NaN.
    if inputs.scales is None:
        there = start + jax.lax.broadcasted_iota(jnp.int32, v.shape, 0) < kv_end
        gained = product(weights.astype(v.dtype), jnp.where(there, v, jnp.zeros_like(v)))
    else:
        there = start + jnp.arange(kv, dtype=jnp.int32) < kv_end
        scaled = weights * jnp.where(there, v_scale * RESTORED, 0.0)[None]
        gained = product(scaled.astype(v.dtype), v) / RESTORED
    out = running.out * decay[:, None] + gained
    return _Running(out, top, running.total * decay + weights.sum(axis=1))


def _read_head(place: Any, head_dim: int) -> jax.Array:
    """Returns a head of a block of tokens, [tokens, lanes], with zeros after its last number."""
    tokens, lanes = place.shape
    if lanes == head_dim:
        return place[...]
    there = jnp.broadcast_to((jnp.arange(lanes) < head_dim)[None], (tokens, lanes))
    return triton.load(place, mask=there, other=0)


def _visible(
    inputs: Inputs,
    options: Options,
    facts: list[jax.Array],
    tile: jax.Array,
    start: jax.Array,
    shape: tuple[int, ...],
) -> jax.Array:
    """Returns which tokens each row attends to, bool[M, tokens]; M is heads times rows."""
    slot, q_start, row_start, _ = facts
    column = start + jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    # The M axis repeats the tile's rows for each head, and their number is a power of two.
    place = jax.lax.broadcasted_iota(jnp.int32, shape, 0) & (options.blocks.q - 1)
    row = row_start + place
    visible = column <= row
    if (window := Window.read(inputs.window)) is not None:
        if inputs.ancestors is not None:
            places = row_start - q_start + (jnp.arange(shape[0]) & (options.blocks.q - 1))
            row -= jnp.broadcast_to(lag(inputs.ancestors[tile], places)[:, None], shape)
        visible &= window.shows(column, row)
    if inputs.ancestors is not None:
        draft = column - q_start
        bits = jnp.broadcast_to(inputs.ancestors[tile][:, None], shape)
        bit = jax.lax.shift_right_logical(bits, jnp.clip(draft, 0, 31)) & 1
        visible &= (draft < 0) | (bit == 1)
    if inputs.holes is not None:
        holes = inputs.holes[pl.ds(slot * options.capacity + start, shape[1])]
        visible &= jnp.broadcast_to(holes[None], shape) == 0
    return visible


def product(left: jax.Array, right: jax.Array) -> jax.Array:
    """Returns left [M, X] times right [X, Y] in float32."""
    return triton.dot(left, right)
