"""Counts the same for jax's `ragged_paged_attention`, for comparison.

It is a paged kernel; here the pages of a sequence are consecutive. It takes heads of width 128 and
head counts that fill whole memory tiles. Others are padded here, as its users must do.
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.ragged_paged_attention import kernel as peer

from emsjax.pallas_kernels.ahead import compile_on
from emsjax.pallas_kernels.kv_rows import LANES
from emsjax.pallas_kernels.report.bundles import read_loop
from emsjax.pallas_kernels.report.row import Row
from emsjax.pallas_kernels.report.work import Heads, Work

PAGE = 128


class Sizes(NamedTuple):
    """Sizes of its blocks.

    Attributes:
      tokens: tokens of a block of keys and values.
      queries: queries of a block.
    """

    tokens: int
    queries: int


# The sizes of its own tuning table; fewer queries, since a decode step has few; and shorter blocks,
# which fetch less past a slot's end.
SIZES = (Sizes(512, 32), Sizes(512, 8), Sizes(128, 32))
# Most bytes of VMEM for two blocks of the heads that it takes at once.
BUFFER_BYTES = 8 << 20
VMEM_LIMIT = 64 << 20


def measure(generation: str, model: str, work: Work, dump: Path) -> Iterator[Row]:
    """Compiles jax's kernel for some work, and yields a row of figures for each of `SIZES`.

    The arguments are those of `ours.measure`.
    """
    for sizes in SIZES:
        yield _measure(generation, model, work, dump, sizes)


def _measure(generation: str, model: str, work: Work, dump: Path, sizes: Sizes) -> Row:
    heads = _padded(work.heads)
    at_once = peer.get_min_heads_per_blk(
        heads.num_heads, 2 * heads.num_kv_heads, jnp.bfloat16, jnp.bfloat16
    )[1]
    head_blocks = 2 * heads.num_kv_heads // at_once
    block = _block(sizes.tokens, at_once, work.itemsize)
    _compile(generation, work, heads, Sizes(block, sizes.queries))
    loop = read_loop(dump, "ragged_paged_attention_kernel")
    visits = _visits(work.q_lens, sizes.queries)
    blocks_of = [-(-kv_len // block) for kv_len in work.kv_lens]
    trips = sum(times * blocks for times, blocks in zip(visits, blocks_of, strict=True))
    # The grid is a loop only if it has more than one step.
    *steps, visit = loop.outer
    grid = -(-work.num_rows // sizes.queries)
    token_bytes = 2 * heads.num_kv_heads * heads.head_dim * work.itemsize
    queries = 2 * work.num_rows * heads.num_heads * heads.head_dim * work.itemsize
    return Row(
        model=model,
        kernel=f"jax, {block} tokens, {sizes.queries} queries",
        vmem_bytes=loop.vmem_bytes,
        block=block,
        bundles=loop.bundles * head_blocks,
        least=loop.least * head_blocks,
        busiest=loop.busiest,
        spills=loop.spills * head_blocks,
        all_bundles=head_blocks * (trips * loop.bundles + sum(visits) * visit + grid * sum(steps)),
        all_bytes=trips * block * token_bytes + queries,
        least_bytes=work.least_bytes,
        allocated=token_bytes,
        needed=work.token_bytes,
    )


def _padded(heads: Heads) -> Heads:
    """The smallest heads that it takes and that hold the given ones."""
    kv_heads = heads.num_kv_heads
    fits = next(k for k in range(kv_heads, 2 * kv_heads + 8) if k in (1, 2, 4) or k % 8 == 0)
    group = heads.num_heads // kv_heads
    return Heads(fits * group, fits, -(-heads.head_dim // LANES) * LANES)


def _block(block: int, heads_at_once: int, itemsize: int) -> int:
    """The largest block of tokens, up to `block`, of which two fit into `BUFFER_BYTES`."""
    while 2 * block * heads_at_once * LANES * itemsize > BUFFER_BYTES and block > PAGE:
        block //= 2
    return block


def _visits(q_lens: tuple[int, ...], queries: int) -> list[int]:
    """For each slot, how many blocks of queries hold its rows; each of them reads the slot once."""
    visits, start = [], 0
    for q_len in q_lens:
        end = start + q_len
        visits.append(-(-end // queries) - start // queries if q_len else 0)
        start = end
    return visits


def _compile(generation: str, work: Work, heads: Heads, sizes: Sizes) -> None:
    pages = work.capacity // PAGE
    call = functools.partial(
        peer.ragged_paged_attention,
        sm_scale=heads.head_dim**-0.5,
        num_kv_pages_per_block=sizes.tokens // PAGE,
        num_queries_per_block=sizes.queries,
        vmem_limit_bytes=VMEM_LIMIT,
    )
    slots = work.num_slots
    cache = (slots * pages, PAGE, 2 * heads.num_kv_heads, heads.head_dim)

    def arguments() -> tuple:
        return (
            jax.ShapeDtypeStruct((work.num_rows, heads.num_heads, heads.head_dim), jnp.bfloat16),
            jax.ShapeDtypeStruct(cache, jnp.bfloat16),
            jax.ShapeDtypeStruct((slots,), jnp.int32),
            jax.ShapeDtypeStruct((slots, pages), jnp.int32),
            jax.ShapeDtypeStruct((slots + 1,), jnp.int32),
            jax.ShapeDtypeStruct((1,), jnp.int32),
        )

    compile_on(generation, call, arguments)
