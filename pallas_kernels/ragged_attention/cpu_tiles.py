"""The tiles of attention on CPU: which rows and heads an item of the kernel computes.

A tile is as high as its slot has rows, up to a limit, so a decoding slot costs the same next to a
prompt as alone.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import carray

from emsjax.pallas_kernels.host_call import argument, compiled, pointer, size

# The operands, in order.
Q, CACHE, LAYER, STARTS, LENS, ANCESTORS, HOLES, WHOLE, FACTORS, SINKS, SCALES, TREES = range(12)
FEW_ROWS = 8  # rows whose tokens take longer to read than the arithmetic
_ENOUGH = 8  # slots that keep all threads busy, with one item each
_HEIGHT = 96  # rows of a tile times query heads per KV head, at most


class Tile(NamedTuple):
    """Where a tile's rows lie.

    Attributes:
      slot: the slot; B if there is no tile.
      row: its first row among all packed rows.
      rows: how many rows it has.
      place: the first row's position in the slot's cache.
      draft: position of the slot's first row of this step; of a token tree, of its first row.
      head: its first KV head.
      heads: how many KV heads it has.
    """

    slot: Any
    row: Any
    rows: Any
    place: Any
    draft: Any
    head: Any
    heads: Any


@compiled
def whole(frame: int, index: int) -> Any:
    """Returns the number of KV heads (0), the window (1) or the sink tokens (2)."""
    return np.int64(carray(pointer(argument(frame, WHOLE)), (3,), np.int32)[index])


@compiled
def _tile_rows(frame: int) -> int:
    return max(_HEIGHT * whole(frame, 0) // size(frame, Q, 1), 1)


@compiled
def _parts(frame: int, rows: Any, busy: int) -> int:
    """Returns among how many items the heads of a slot's tiles are divided.

    Reading few rows' tokens takes longer than the arithmetic, and memory is fastest when it is read
    in order, with the heads of a token together. If there are few slots, there must be items for
    all threads.
    """
    return 1 if rows <= FEW_ROWS and busy >= _ENOUGH else whole(frame, 0)


@compiled
def _busy(starts: np.ndarray) -> int:
    """Returns how many slots have rows."""
    busy = 0
    for slot in range(len(starts) - 1):
        busy += starts[slot + 1] > starts[slot]
    return busy


@compiled
def _starts(frame: int) -> np.ndarray:
    return carray(pointer(argument(frame, STARTS)), (size(frame, CACHE, 1) + 1,), np.int32)


@compiled
def count(frame: int) -> int:
    """Returns the number of items of a call."""
    starts, most = _starts(frame), _tile_rows(frame)
    busy = _busy(starts)
    items: Any = 1  # the last item clears unused rows
    for slot in range(len(starts) - 1):
        rows = np.int64(starts[slot + 1] - starts[slot])
        items += (rows + most - 1) // most * _parts(frame, rows, busy)
    return items


@compiled
def find(frame: int, item: Any) -> Tile:
    """Returns an item's tile; the last item has none, and its row is the first unused one."""
    starts, most, heads = _starts(frame), _tile_rows(frame), whole(frame, 0)
    slots, busy = len(starts) - 1, _busy(starts)
    lens = carray(pointer(argument(frame, LENS)), (slots,), np.int32)
    for slot in range(slots):
        rows = np.int64(starts[slot + 1] - starts[slot])
        parts = _parts(frame, rows, busy)
        items = (rows + most - 1) // most * parts
        if item < items:
            before, place = item // parts * most, lens[slot] - rows
            tall, first = min(most, rows - before), starts[slot] + before
            share, draft = heads // parts, place
            if size(frame, TREES, 0) > 0:
                draft = np.int64(carray(pointer(argument(frame, TREES)), (slots,), np.int32)[slot])
            return Tile(slot, first, tall, place + before, draft, item % parts * share, share)
        item -= items
    return Tile(slots, np.int64(starts[slots]), 0, 0, 0, 0, 0)
