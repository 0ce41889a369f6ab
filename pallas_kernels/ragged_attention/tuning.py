"""Block sizes of the attention backends: for the kernels heuristics, or what was measured."""

import math
from types import MappingProxyType
from typing import NamedTuple

from emsjax.pallas_kernels.tensor_cores import TENSOR_CORE_ROWS
from emsjax.pallas_kernels.tpu_registers import SUBLANES
from emsjax.pallas_kernels.tuned import tuned


class Blocks(NamedTuple):
    """Block sizes of the reference backend. They change its speed, not its results.

    Attributes:
      kv: tokens of the cache read at a time, at most.
      q: rows of a tile, at most, before they are rounded up by `row_multiple`.
      tiles_at_once: tiles processed in parallel. None processes them one by one, so that each
        stops at its own sample's length. This is best on CPU, which has no parallelism to fill,
        and on TPU, where gathering blocks of several slots would make XLA permute the whole cache.
      row_multiple: in a tile of several rows, rows times query heads per KV head is a multiple of
        this. XLA's products on CPU take 6 rows at a time and may sum the remaining rows in another
        order, which would let a row's last bits depend on its place in the tile (measured).
    """

    kv: int
    q: int
    tiles_at_once: int | None
    row_multiple: int = 1


BLOCKS = MappingProxyType(
    {
        "cpu": Blocks(kv=256, q=32, tiles_at_once=None, row_multiple=6),
        "gpu": Blocks(kv=256, q=32, tiles_at_once=64),
        "tpu": Blocks(kv=256, q=32, tiles_at_once=None),
    }
)


def tile_height(blocks: Blocks, num_rows: int, num_slots: int, max_q_len: int, group: int) -> int:
    """Returns the rows of a tile of the reference backend.

    A partly used tile costs as much as a full one. If the buffer is too small for `max_q_len` rows
    in every slot, most slots have fewer. A tile then has the average number of rows, and a slot
    with more rows takes several tiles.

    Args:
      blocks: sizes for the platform.
      num_rows: T.
      num_slots: B.
      max_q_len: bound on the rows of one slot; T if one slot may fill the buffer.
      group: query heads per KV head.
    """
    rows = min(max_q_len, blocks.q)
    if max_q_len < num_rows:
        rows = min(rows, -(-num_rows // num_slots))
    if rows == 1:
        return 1
    step = blocks.row_multiple // math.gcd(blocks.row_multiple, group)
    return -(-rows // step) * step


class TPUBlocks(NamedTuple):
    """Block sizes of the TPU kernel.

    Attributes:
      kv: tokens of the cache in one of the two buffers; a multiple of `piece` and a divisor of S.
      piece: tokens of one copy from HBM; fewer than this are fetched past a slot's end.
      q: rows of a tile, at most; a power of two.
    """

    kv: int
    piece: int
    q: int


class TPUSizes(NamedTuple):
    """What the TPU kernel's `Pieces` depend on; see `tpu_blocks`."""

    capacity: int
    token_bytes: int
    itemsize: int
    num_heads: int
    lanes: int


class Pieces(NamedTuple):
    """The block sizes of the TPU kernel that may be tuned, see `TPUBlocks`."""

    kv: int
    piece: int


# Bytes of one buffer, of one copy, and of everything that grows with the rows of a tile. A core has
# at least 16 MiB of VMEM, and the compiler needs some of it.
BUFFER_BYTES = 2 << 20
PIECE_BYTES = 128 << 10
TILE_BYTES = 5 << 20


def tpu_blocks(
    cache_shape: tuple[int, ...],
    cache_itemsize: int,
    itemsize: int,
    num_heads: int,
    max_q_len: int,
    lanes: int,
) -> TPUBlocks:
    """Returns the TPU kernel's block sizes for a cache [L, B, S, R, 128].

    Args:
      cache_shape: shape of the cache.
      cache_itemsize: bytes of a number in the cache.
      itemsize: bytes of a number in queries and results.
      num_heads: N.
      max_q_len: bound on the rows of one slot.
      lanes: W, total lanes of the cache rows that one head occupies.
    """
    _, _, capacity, rows, row_lanes = cache_shape
    token_bytes = rows * row_lanes * cache_itemsize
    kv = math.gcd(capacity, min(max(_power_of_two(BUFFER_BYTES // token_bytes), 128), 512))
    piece = math.gcd(kv, min(max(_power_of_two(PIECE_BYTES // token_bytes), 16), 64))
    given = TPUSizes(capacity, token_bytes, itemsize, num_heads, lanes)
    kv, piece = tuned("ragged_attention/tpu", given, Pieces(kv, piece))
    # Two buffers each for queries and outputs, plus weights and running softmax in float32.
    row_bytes = num_heads * (4 * lanes * itemsize + 4 * (lanes + kv + 3 * row_lanes))
    fits = _power_of_two(TILE_BYTES // row_bytes)
    return TPUBlocks(kv, piece, min(_power_of_two(2 * max_q_len - 1), fits))


def tpu_tile_height(rows: int, group: int) -> int:
    """Returns the tile's rows times the query heads per KV head, padded to whole registers."""
    return -(-rows * group // SUBLANES) * SUBLANES


class GPUBlocks(NamedTuple):
    """Block sizes of the GPU kernel.

    Attributes:
      kv: tokens of one block of keys or values; a divisor of S and of `section`.
      section: tokens of a slot that one thread block processes.
      stages: blocks of keys in flight or in use, and as many blocks of values.
      q: rows of a tile, at most; a power of two.
      height: rows times query heads per KV head, rounded up to a multiple of
        `TENSOR_CORE_ROWS`.
    """

    kv: int
    section: int
    stages: int
    q: int
    height: int


class GPUSizes(NamedTuple):
    """What the GPU kernels' `Sections` depend on; see `gpu_blocks`."""

    capacity: int
    head_dim: int
    group: int
    caches: int


class Sections(NamedTuple):
    """The block sizes of the GPU kernels that may be tuned, see `GPUBlocks`."""

    section: int
    stages: int


# Maximum rows times heads in a thread block, for heads up to `WIDE` numbers wide.
MOST_HEIGHT, WIDE = 128, 128
# Tokens of a section. Shorter sections cost more to start and combine than they gain.
SHORTEST_SECTION, LONGEST_SECTION = 256, 1024
# Thread blocks that an H100 or H200 runs at a time: two on each of 132 multiprocessors.
BLOCKS_AT_ONCE = 264
# Shared memory for keys and values in flight, so that two thread blocks fit on a multiprocessor.
STAGE_BYTES = 64 << 10


def gpu_blocks(
    capacity: int, head_dim: int, group: int, max_q_len: int, caches: int, backend: str = "gpu"
) -> GPUBlocks:
    """Returns the block sizes of the kernel for Hopper, which depend on shapes and device alone.

    Args:
      capacity: S, tokens of a slot.
      head_dim: H.
      group: query heads per KV head.
      max_q_len: bound on the rows of one slot.
      caches: B slots times K KV heads; a thread block reads one slot's cache for one KV head.
      backend: the kernel's name.
    """
    kv = math.gcd(capacity, 64)
    stages = max(2, STAGE_BYTES // (2 * kv * head_dim * 2))
    most = most_height(head_dim) // group
    rows = min(_power_of_two(2 * max_q_len - 1), _power_of_two(most))
    height = -(-rows * group // TENSOR_CORE_ROWS) * TENSOR_CORE_ROWS
    # Lengthen the sections as long as there are enough of them to occupy the whole GPU.
    section = SHORTEST_SECTION
    while section < min(capacity * caches // BLOCKS_AT_ONCE, LONGEST_SECTION):
        section *= 2
    sizes = GPUSizes(capacity, head_dim, group, caches)
    found = tuned(f"ragged_attention/{backend}", sizes, Sections(section, stages))
    return GPUBlocks(kv, found.section, found.stages, rows, height)


def most_height(head_dim: int) -> int:
    """Returns the most rows times heads in a thread block; wider heads leave room for fewer."""
    return MOST_HEIGHT if head_dim <= WIDE else TENSOR_CORE_ROWS


def _power_of_two(limit: int) -> int:
    """Returns the largest power of two that is at most `limit`, or 1 if `limit` is smaller."""
    return 1 << (max(limit, 1).bit_length() - 1)
