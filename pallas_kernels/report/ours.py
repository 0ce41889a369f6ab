"""Counts what our attention kernel moves and executes for some work."""

from collections.abc import Iterator
from pathlib import Path

from emsjax.pallas_kernels.backends import compiling_for
from emsjax.pallas_kernels.kv_layout import rows_per_token
from emsjax.pallas_kernels.kv_rows import LANES
from emsjax.pallas_kernels.ragged_attention.lanes import width
from emsjax.pallas_kernels.ragged_attention.tpu_block import CLEARED_AT_ONCE
from emsjax.pallas_kernels.ragged_attention.tuning import TPUBlocks, tpu_blocks, tpu_tile_height
from emsjax.pallas_kernels.report.ahead import compile_attention
from emsjax.pallas_kernels.report.bundles import read_loop
from emsjax.pallas_kernels.report.row import Row
from emsjax.pallas_kernels.report.work import Work


def measure(generation: str, model: str, work: Work, dump: Path) -> Iterator[Row]:
    """Compiles our kernel for some work, and yields a row of figures for chains and one for trees.

    Args:
      generation: of the TPU.
      model: its name, for the table.
      work: the attention to compute.
      dump: the directory that this process's TPU compiler writes into.
    """
    for tree in (False, True):
        yield _measure(generation, model, work, dump, tree)


def _measure(generation: str, model: str, work: Work, dump: Path, tree: bool) -> Row:
    compile_attention(generation, work, tree=tree)
    loop = read_loop(dump, "ragged_attention")
    blocks, token_rows = _sizes(work)
    token_bytes = token_rows * LANES * work.itemsize
    tiles = list(_tiles(work, blocks))
    whole = sum(end // blocks.kv for end in tiles)
    pieces = sum(-(-(end % blocks.kv) // blocks.piece) for end in tiles)
    fetched = whole * blocks.kv + pieces * blocks.piece
    trips = sum(-(-end // blocks.kv) for end in tiles)
    # The inner loops, in the kernel's order: start the copies of pieces, wait for them, clear
    # single tokens, clear several tokens at once.
    start, wait, one, several = loop.inner
    cleared = [_cleared(end, blocks) for end in tiles]
    return Row(
        model=model,
        kernel="emsjax, token trees" if tree else "emsjax",
        vmem_bytes=loop.vmem_bytes,
        block=blocks.kv,
        bundles=loop.bundles,
        least=loop.least,
        busiest=loop.busiest,
        spills=loop.spills,
        all_bundles=trips * loop.bundles
        + pieces * (start + wait)
        + sum(ones * one + more * several for ones, more in cleared)
        + len(tiles) * sum(loop.outer),
        all_bytes=fetched * token_bytes + len(tiles) * _tile_bytes(work, blocks),
        least_bytes=work.least_bytes,
        allocated=token_bytes,
        needed=work.token_bytes,
    )


def _sizes(work: Work) -> tuple[TPUBlocks, int]:
    """Block sizes, and the rows of a token in the cache."""
    num_heads, num_kv_heads, head_dim = work.heads
    with compiling_for("tpu"):
        rows = rows_per_token(num_kv_heads, head_dim)
    shape = (1, work.num_slots, work.capacity, rows, LANES)
    lanes = width(num_kv_heads, head_dim)
    sizes = work.itemsize, work.itemsize
    return tpu_blocks(shape, *sizes, num_heads, work.max_q_len, lanes), rows


def _tiles(work: Work, blocks: TPUBlocks) -> Iterator[int]:
    """Yields the number of keys and values that each tile of queries attends to."""
    for q_len, kv_len in zip(work.q_lens, work.kv_lens, strict=True):
        for first in range(0, q_len, blocks.q):
            yield kv_len - q_len + min(first + blocks.q, q_len)


def _cleared(end: int, blocks: TPUBlocks) -> tuple[int, int]:
    """Trips of the loops that clear the last block after a tile's end: by one, and by several."""
    after = -end % blocks.kv
    return after % CLEARED_AT_ONCE, after // CLEARED_AT_ONCE


def _tile_bytes(work: Work, blocks: TPUBlocks) -> int:
    """Bytes of the queries and results of one tile, padded as the kernel pads them."""
    num_heads, num_kv_heads, head_dim = work.heads
    height = tpu_tile_height(blocks.q, num_heads // num_kv_heads)
    return 2 * num_kv_heads * height * width(num_kv_heads, head_dim) * work.itemsize
