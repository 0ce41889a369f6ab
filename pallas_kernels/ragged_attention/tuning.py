"""Block sizes of the XLA attention, by platform."""

import math
from types import MappingProxyType
from typing import NamedTuple


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


def tile_height(blocks: Blocks, max_q_len: int, group: int) -> int:
    """Rows of a tile.

    Args:
      blocks: sizes for the platform.
      max_q_len: the most rows of one slot.
      group: query heads of a KV head.
    """
    rows = min(max_q_len, blocks.q)
    if rows == 1:
        return 1
    step = blocks.row_multiple // math.gcd(blocks.row_multiple, group)
    return -(-rows // step) * step
