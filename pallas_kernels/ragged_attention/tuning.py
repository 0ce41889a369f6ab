"""Block sizes of the attention: data where they were tuned, else a heuristic."""

import math
from types import MappingProxyType
from typing import NamedTuple

from emsjax.pallas_kernels.hopper import TENSOR_CORE_ROWS


class Blocks(NamedTuple):
    """Sizes that change speed only.

    Attributes:
      kv: tokens of the cache read at a time.
      q: most rows of a tile.
      tiles_at_once: tiles worked on together; None takes them one by one, so that each stops at
        its own sample's length. Best where there is no parallelism to fill; and on TPU, where a
        gather of several slots' blocks would make XLA permute the whole cache.
      row_multiple: rows times query heads of a KV head are a multiple of this in a tile of several
        rows. XLA's products on CPU take 6 rows at a time and may sum those left over in another
        order: a row's last bits would depend on its place in the tile (measured).
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
    """Rows of a tile.

    A tile costs what a full one costs. Where the buffer is too small for every slot's longest
    draft, most slots have fewer rows, so a tile is of the average: who has more takes several.

    Args:
      blocks: sizes for the platform.
      num_rows: T.
      num_slots: B.
      max_q_len: the most rows of one slot; T itself where one slot may fill the buffer.
      group: query heads of a KV head.
    """
    rows = min(max_q_len, blocks.q)
    if max_q_len < num_rows:
        rows = min(rows, -(-num_rows // num_slots))
    if rows == 1:
        return 1
    step = blocks.row_multiple // math.gcd(blocks.row_multiple, group)
    return -(-rows // step) * step


class TPUBlocks(NamedTuple):
    """Sizes of the TPU kernel.

    Attributes:
      kv: tokens of the cache in one of the two buffers; a multiple of `piece`, divides S.
      piece: tokens of one copy from HBM: what is fetched past a slot's end is less than this.
      q: most rows of a tile, a power of two.
    """

    kv: int
    piece: int
    q: int


# Bytes: of one buffer, of one copy, and of all that grows with the rows of a tile. A core has
# 16 MiB or more of VMEM, some of which the compiler wants for itself.
BUFFER_BYTES = 2 << 20
PIECE_BYTES = 128 << 10
TILE_BYTES = 5 << 20


def tpu_blocks(
    cache_shape: tuple[int, ...], itemsize: int, num_heads: int, max_q_len: int, lanes: int
) -> TPUBlocks:
    """Sizes for a cache [L, B, S, R, 128].

    Args:
      cache_shape: of the cache.
      itemsize: bytes of a number in it.
      num_heads: N.
      max_q_len: the most rows of one slot.
      lanes: W, lanes of the rows that one head touches.
    """
    _, _, capacity, rows, row_lanes = cache_shape
    token_bytes = rows * row_lanes * itemsize
    kv = math.gcd(capacity, min(max(_power_of_two(BUFFER_BYTES // token_bytes), 128), 512))
    piece = math.gcd(kv, min(max(_power_of_two(PIECE_BYTES // token_bytes), 16), 64))
    # Queries and outputs twice (one on its way), weights and the running softmax in float32.
    row_bytes = num_heads * (4 * lanes * itemsize + 4 * (lanes + kv + 3 * row_lanes))
    fits = _power_of_two(TILE_BYTES // row_bytes)
    return TPUBlocks(kv, piece, min(_power_of_two(2 * max_q_len - 1), fits))


# Rows of a vector register: products with fewer rows cost as much.
SUBLANES = 8


def tpu_tile_height(rows: int, group: int) -> int:
    """Rows of a TPU tile times the query heads of a KV head, padded to whole registers."""
    return -(-rows * group // SUBLANES) * SUBLANES


class GPUBlocks(NamedTuple):
    """Sizes of the GPU kernel.

    Attributes:
      kv: tokens of one block of keys or values; divides S and `section`.
      section: tokens of a slot that one thread block takes.
      stages: blocks of keys, and of values, on their way or in use.
      q: most rows of a tile, a power of two.
      height: rows times query heads of a KV head, rounded up to what the tensor cores take.
    """

    kv: int
    section: int
    stages: int
    q: int
    height: int


# Rows times heads that one thread block takes, of heads up to so wide.
MOST_HEIGHT, WIDE = 128, 128
# Of a section, in tokens: shorter ones cost more to begin and to combine than they gain.
SHORTEST_SECTION, LONGEST_SECTION = 256, 1024
# Thread blocks that an H100 or H200 runs at a time: two on each of 132 multiprocessors.
BLOCKS_AT_ONCE = 264
# Shared memory for keys and values in flight: two thread blocks fit on a multiprocessor.
STAGE_BYTES = 64 << 10


def gpu_blocks(capacity: int, head_dim: int, group: int, max_q_len: int, caches: int) -> GPUBlocks:
    """Sizes that depend on shapes alone.

    Args:
      capacity: S, tokens of a slot.
      head_dim: H.
      group: query heads of a KV head.
      max_q_len: the most rows of one slot.
      caches: B slots times K KV heads, each of which is read by thread blocks of its own.
    """
    kv = math.gcd(capacity, 64)
    stages = max(2, STAGE_BYTES // (2 * kv * head_dim * 2))
    most = most_height(head_dim) // group
    rows = min(_power_of_two(2 * max_q_len - 1), _power_of_two(most))
    height = -(-rows * group // TENSOR_CORE_ROWS) * TENSOR_CORE_ROWS
    section = SHORTEST_SECTION
    while section < min(capacity * caches // BLOCKS_AT_ONCE, LONGEST_SECTION):
        section *= 2
    return GPUBlocks(kv, section, stages, rows, height)


def most_height(head_dim: int) -> int:
    """Rows times heads that one thread block takes: wider heads leave room for fewer."""
    return MOST_HEIGHT if head_dim <= WIDE else TENSOR_CORE_ROWS


def _power_of_two(limit: int) -> int:
    """The largest power of two that is at most `limit`; at least 1."""
    return 1 << (max(limit, 1).bit_length() - 1)
