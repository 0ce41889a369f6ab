"""Ragged attention as a Mosaic GPU kernel, for Hopper.

A thread block processes one section of a slot's cache for one tile, see `sections`. It streams keys
and values through shared memory, with several blocks in flight at a time, and multiplies on the
tensor cores.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from emsjax.pallas_kernels import hopper
from emsjax.pallas_kernels.int8_cache import Cache, Int8Cache
from emsjax.pallas_kernels.manual_axes import result_like
from emsjax.pallas_kernels.ragged_attention.gpu_block import (
    INT8_MULTIPLE,
    Running,
    Shared,
    add_block,
    clear_past,
    clear_scales,
    empty,
    scores_of,
    visible_tokens,
    widened,
)
from emsjax.pallas_kernels.ragged_attention.sections import (
    Inputs,
    Options,
    Sums,
    first_scale,
    walk_of,
)
from emsjax.pallas_kernels.ragged_attention.sections import prepare as prepare_sections
from emsjax.pallas_kernels.ragged_attention.tiles import Walk, Window
from emsjax.pallas_kernels.ragged_attention.tuning import (
    gpu_blocks,
    most_height,
)
from emsjax.pallas_kernels.tensor_cores import DTYPES, TENSOR_CORE_ROWS
from emsjax.shapes import round_up

# 32 bytes, the narrowest layout in shared memory that the tensor cores can read.
HEAD_MULTIPLE = 16
# Most columns of a tensor core product.
WIDEST_HEAD = 256
AXES = ("tile", "head", "section")
# Most numbers of a head that are written out together. With a larger buffer, a multiprocessor would
# have room for only one thread block instead of two.
WRITTEN_AT_ONCE = 64
# A copy moves a multiple of 16 bytes, and a tile's sums have four bytes a row.
KEPT_MULTIPLE = 8


def _kept(options: Options) -> int:
    """Returns the rows of a tile's results that hold a query head, rounded up.

    The tensor cores multiply M rows, most of which are padding if a slot has few. In a plain step
    of SmolLM2, writing all of them would take as many bytes as its cache of 1,000 tokens.
    """
    return round_up(options.group * options.blocks.q, KEPT_MULTIPLE)


class _Refs(NamedTuple):
    """The kernel's arguments; all but `shared` are in global memory."""

    inputs: Inputs
    sums: Sums
    shared: Shared

    @classmethod
    def of(cls, refs: tuple[Any, ...], options: Options) -> "_Refs":
        """Names the kernel's positional arguments."""
        given = iter(refs)
        inputs = Inputs.of(given, options)
        return cls(inputs, Sums(*(next(given) for _ in Sums._fields)), Shared(*given))


def unsupported(q: jax.Array, cache: Cache, num_kv_heads: int) -> str | None:
    """Returns why the kernel does not support these arguments, or None if it does."""
    _, num_heads, head_dim = q.shape
    group, capacity, no_hopper = num_heads // num_kv_heads, cache.shape[2], hopper.no_hopper()
    int8 = isinstance(cache, Int8Cache)
    problems = (
        (no_hopper, no_hopper),
        (
            q.dtype not in DTYPES,
            f"q is {q.dtype}; the GPU kernel requires bfloat16 or float16",
        ),
        (
            not int8 and cache.dtype != q.dtype,
            f"the cache is {cache.dtype} and q is {q.dtype}; the GPU kernel requires one dtype",
        ),
        (
            capacity % TENSOR_CORE_ROWS,
            f"S is {capacity}; the GPU kernel requires a multiple of {TENSOR_CORE_ROWS}",
        ),
        (
            int8 and head_dim % INT8_MULTIPLE,
            f"heads are {head_dim} wide; with an int8 cache the GPU kernel requires a multiple of "
            f"{INT8_MULTIPLE}",
        ),
        (
            head_dim % HEAD_MULTIPLE or head_dim > WIDEST_HEAD,
            f"heads are {head_dim} wide; the GPU kernel requires a multiple of {HEAD_MULTIPLE}, at "
            f"most {WIDEST_HEAD}",
        ),
        (
            group > most_height(head_dim),
            f"{group} query heads share a KV head; the GPU kernel allows {most_height(head_dim)}",
        ),
    )
    return next((reason for problem, reason in problems if problem), None)


def _kernel(*refs: Any, options: Options) -> None:
    """Processes one tile, KV head and section; see the module's docstring."""
    given = _Refs.of(refs, options)
    inputs, shared = given.inputs, given.shared
    at = tile, head, section = tuple(jax.lax.axis_index(name) for name in AXES)
    blocks = options.blocks
    height, head_dim = shared.q.shape

    slot, q_start, row_start, kv_end = (fact[tile] for fact in inputs.facts)
    window = Window.read(inputs.window)
    steps = walk_of(inputs, options, window, tile, section)

    # A section without tokens still writes its sums: `_combine` reads those of every section.
    @pl.when(steps.start >= steps.end)
    def _nothing() -> None:
        _write_sums(empty(height, head_dim), given, at)
        plgpu.wait_smem_to_gmem(0)

    @pl.when(steps.start < steps.end)
    def _attend() -> None:
        ancestors = None
        if inputs.ancestors is not None:
            hopper.load(inputs.ancestors.at[tile], shared.ancestors, shared.arrived)
            ancestors = plgpu.layout_cast(shared.ancestors[...], plgpu.Layout.WGMMA.reduce(1))
        # Awaited when the first block is processed: the copies of keys and values start meanwhile.
        plgpu.copy_gmem_to_smem(inputs.q.at[tile, head], shared.q, shared.arrived)

        def block(indices: Any, k: Any, v: Any, *rest: Any) -> Running:
            *others, running = rest
            by_token = [plgpu.layout_cast(x[...], plgpu.Layout.WGMMA.reduce(0)) for x in others]
            holes = by_token.pop(0) if options.holes else None
            k_scale, v_scale = by_token or (None, None)
            start = steps.block(steps.start + indices[0]) * blocks.kv

            @pl.when(indices[0] == 0)
            def _wait() -> None:
                plgpu.barrier_wait(shared.arrived)

            if v_scale is not None:
                v_scale = clear_scales(kv_end - start, v_scale)
            else:

                @pl.when(start + blocks.kv > kv_end)
                def _clear() -> None:
                    clear_past(kv_end - start, v)

            shape = (height, blocks.kv)
            seen = window, ancestors, holes, blocks.q
            visible = visible_tokens(shape, start, q_start, row_start, *seen)
            scores = scores_of(shared.q, widened(k, shared.k), visible, options, k_scale)
            return add_block(running, scores, v, shared, v_scale)

        specs = _specs((slot, steps, head), head_dim, inputs.cache.dtype, options)
        cache = inputs.cache.at[inputs.layer[0]]
        sources = [cache, cache, *([inputs.holes] if options.holes else [])]
        if inputs.scales is not None:
            sources += 2 * [inputs.scales.at[inputs.layer[0]]]
        done = plgpu.emit_pipeline(
            block,
            grid=(steps.end - steps.start,),
            in_specs=specs,
            max_concurrent_steps=blocks.stages,
            init_carry=empty(height, head_dim),
        )(*sources)
        _write_sums(done, given, at)
        _write(done.out, shared.out, given.sums.out.at[at])


def _specs(
    place: tuple[Any, Walk, Any], head_dim: int, dtype: jnp.dtype, options: Options
) -> list[plgpu.BlockSpec]:
    """Returns which blocks of keys, values, holes and scales, if any, are copied in each step.

    Args:
      place: the slot, which of its blocks to read, and the KV head.
      head_dim: H.
      dtype: of the cache.
      options: of the call.
    """
    (slot, steps, head), blocks = place, options.blocks
    before = slot * (options.capacity // blocks.kv)
    numbers = head, options.num_kv_heads + head

    def block_of(step: Any) -> Any:
        return steps.block(steps.start + step)

    specs = [
        plgpu.BlockSpec(
            (blocks.kv, head_dim),
            lambda i, number=number: (before + block_of(i), number),
            transforms=hopper.transforms(
                head_dim if options.scales is None else INT8_MULTIPLE, dtype
            ),
        )
        for number in numbers
    ]
    if options.holes:
        specs.append(plgpu.BlockSpec((blocks.kv,), lambda i: (before + block_of(i),)))

    def scales_at(i: Any, number: Any) -> tuple[Any]:
        return (first_scale(options, slot, block_of(i) * blocks.kv, number) // blocks.kv,)

    if options.scales is not None:
        for number in numbers:
            here = functools.partial(scales_at, number=number)
            specs.append(plgpu.BlockSpec((blocks.kv,), here))
    return specs


def _write_sums(running: Running, given: _Refs, at: tuple[Any, ...]) -> None:
    """Starts copying the largest scores and the totals to global memory."""
    shared, sums = given.shared, given.sums
    shared.top[...] = running.top
    shared.total[...] = running.total
    plgpu.commit_smem()
    for source, target in ((shared.top, sums.top), (shared.total, sums.total)):
        plgpu.copy_smem_to_gmem(source.at[pl.ds(0, target.shape[-1])], target.at[at])


def _write(values: jax.Array, shared: Any, out: Any) -> None:
    """Copies the first rows of float32[M, H] to global memory.

    Args:
      values: float32[M, H].
      shared: float32[M, width], a buffer for that many columns at a time.
      out: float32[kept, H] in global memory.
    """
    width, kept = shared.shape[1], pl.ds(0, out.shape[0])
    for lane in range(0, values.shape[1], width):
        shared[...] = values[:, lane : lane + width]
        hopper.store(shared.at[kept], out.at[slice(None), pl.ds(lane, width)])


def prepare(*arguments: Any, **sizes: Any) -> Callable[..., jax.Array]:
    """Implements `api.prepare`."""
    return prepare_sections(_call, gpu_blocks, *arguments, **sizes)


def _call(inputs: Inputs, options: Options) -> Sums:
    """Runs the kernel for all tiles, KV heads and sections."""
    q, blocks = inputs.q, options.blocks
    num_tiles, num_kv_heads, height, head_dim = q.shape
    grid = (num_tiles, num_kv_heads, pl.cdiv(options.capacity, blocks.section))
    arrays = inputs.arrays()
    rows = result_like((*grid, _kept(options)), jnp.float32, arrays)
    wide = None
    if options.scales is not None:
        transforms = hopper.transforms(head_dim, q.dtype)
        wide = plgpu.SMEM((blocks.kv, head_dim), q.dtype, transforms=transforms)
    call = plgpu.kernel(
        functools.partial(_kernel, options=options),
        out_type=[result_like((*rows.shape, head_dim), jnp.float32, arrays), rows, rows],
        scratch_types=Shared(
            q=plgpu.SMEM(
                (height, head_dim), q.dtype, transforms=hopper.transforms(head_dim, q.dtype)
            ),
            ancestors=plgpu.SMEM((height,), jnp.int32),
            out=plgpu.SMEM((height, _written_at_once(head_dim)), jnp.float32),
            top=plgpu.SMEM((height,), jnp.float32),
            total=plgpu.SMEM((height,), jnp.float32),
            arrived=plgpu.Barrier(),
            k=wide,
            v=wide,
        ),
        grid=grid,
        grid_names=AXES,
        kernel_name="ragged_attention",
    )
    return Sums(*call(*arrays))


def _written_at_once(head_dim: int) -> int:
    """Returns the widest equal parts of a head that are at most `WRITTEN_AT_ONCE` wide."""
    widths = range(8, WRITTEN_AT_ONCE + 1, 8)
    return max(width for width in widths if head_dim % width == 0)
