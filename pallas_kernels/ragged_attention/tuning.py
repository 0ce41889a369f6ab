"""Block sizes of the XLA attention, by platform."""

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
    """

    kv: int
    q: int
    tiles_at_once: int | None


BLOCKS = MappingProxyType(
    {
        "cpu": Blocks(kv=256, q=32, tiles_at_once=None),
        "gpu": Blocks(kv=256, q=32, tiles_at_once=64),
        "tpu": Blocks(kv=256, q=32, tiles_at_once=None),
    }
)
