"""Ragged attention on CPU, compiled by Numba: loops over exactly the tokens that rows may see.

An item is a tile (a few consecutive rows of one slot) and a KV head. It walks over its slot's cache
block by block with an online softmax, like the reference. A tile is as high as its slot has rows,
so a decoding slot costs the same next to a prompt as alone.

A row's result does not depend on the others. Blocks start at absolute positions, and so do the
groups of tokens that are added at a time; tokens that a row does not see weigh exactly 0.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import carray

from emsjax.pallas_kernels import small_products
from emsjax.pallas_kernels.host_call import (
    argument,
    compiled,
    pointer,
    prefetch,
    register,
    result,
    size,
)
from emsjax.pallas_kernels.ragged_attention import cpu_softmax
from emsjax.pallas_kernels.ragged_attention.cpu_softmax import MASKED, Block, soften, softmax
from emsjax.pallas_kernels.small_products import LANES, Product, product_of

_BLOCK = 32  # tokens whose keys and values fit into the fastest cache
_HEIGHT = 96  # rows of a tile times query heads per KV head, at most
_FEW_ROWS = 8  # rows whose tokens take longer to read than the arithmetic
_ENOUGH = 8  # slots that keep all threads busy, with one item each
_TOGETHER = 8  # rows of a product between two steps of reading ahead
# The operands, in order.
_Q, _CACHE, _LAYER, _STARTS, _LENS, _ANCESTORS, _HOLES, _WHOLE, _FACTORS = range(9)


class _Tile(NamedTuple):
    """Where a tile's rows lie.

    Attributes:
      slot: the slot; B if there is no such tile.
      row: its first row among all packed rows.
      rows: how many rows it has.
      place: the first row's position in the slot's cache.
      draft: position of the slot's first row of this step.
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
def _whole(frame: int, index: int) -> Any:
    """Returns the number of KV heads (0) or the window (1)."""
    return np.int64(carray(pointer(argument(frame, _WHOLE)), (2,), np.int32)[index])


@compiled
def _tile_rows(frame: int) -> int:
    return max(_HEIGHT * _whole(frame, 0) // size(frame, _Q, 1), 1)


@compiled
def _parts(frame: int, rows: int, busy: int) -> int:
    """Returns among how many items the heads of a slot's tiles are divided.

    Reading few rows' tokens takes longer than the arithmetic, and memory is fastest when it is read
    in order, with the heads of a token together. If there are few slots, there must be items for
    all threads.
    """
    return 1 if rows <= _FEW_ROWS and busy >= _ENOUGH else _whole(frame, 0)


@compiled
def _busy(starts: np.ndarray) -> int:
    """Returns how many slots have rows."""
    busy = 0
    for slot in range(len(starts) - 1):
        busy += starts[slot + 1] > starts[slot]
    return busy


@compiled
def _starts(frame: int) -> np.ndarray:
    return carray(pointer(argument(frame, _STARTS)), (size(frame, _CACHE, 1) + 1,), np.int32)


@compiled
def _count(frame: int) -> int:
    starts, most = _starts(frame), _tile_rows(frame)
    busy, items = _busy(starts), 1  # the last item clears unused rows
    for slot in range(len(starts) - 1):
        rows = np.int64(starts[slot + 1] - starts[slot])
        items += (rows + most - 1) // most * _parts(frame, rows, busy)
    return items


@compiled
def _find(frame: int, item: Any) -> _Tile:
    starts, most, heads = _starts(frame), _tile_rows(frame), _whole(frame, 0)
    slots, busy = len(starts) - 1, _busy(starts)
    lens = carray(pointer(argument(frame, _LENS)), (slots,), np.int32)
    for slot in range(slots):
        rows = np.int64(starts[slot + 1] - starts[slot])
        parts = _parts(frame, rows, busy)
        items = (rows + most - 1) // most * parts
        if item < items:
            before, draft = item // parts * most, lens[slot] - rows
            tall, first = min(most, rows - before), starts[slot] + before
            share = heads // parts
            return _Tile(slot, first, tall, draft + before, draft, item % parts * share, share)
        item -= items
    return _Tile(slots, np.int64(starts[slots]), 0, 0, 0, 0, 0)


@compiled
def _mask(frame: int, tile: _Tile, group: int, first: int, tokens: int, scores: np.ndarray) -> None:
    """Marks the scores of tokens that the rows do not see."""
    slots, capacity, window = size(frame, _CACHE, 1), size(frame, _CACHE, 2), _whole(frame, 1)
    ancestors = carray(pointer(argument(frame, _ANCESTORS)), (size(frame, _Q, 0),), np.uint32)
    holes = carray(pointer(argument(frame, _HOLES)), (slots, capacity), np.uint8)
    branches, has_holes = size(frame, _ANCESTORS, 0) > 0, size(frame, _HOLES, 0) > 0
    last = tile.place + tile.rows - 1
    if (
        first + tokens <= tile.place + 1
        and first > last - window
        and not has_holes
        and not branches
    ):
        return  # all rows see all tokens
    for j in range(tokens):
        # The columns from the first row that is not before the token, to the last in its window.
        seen = min(max(first + j - tile.place, 0), tile.rows) * group
        past = min(max(first + j - tile.place + window, 0), tile.rows) * group
        scores[j, :seen] = MASKED
        scores[j, past:] = MASKED
        if has_holes and holes[tile.slot, first + j]:
            scores[j] = MASKED
        if branches and first + j >= tile.draft:
            bit = np.uint32(first + j - tile.draft)
            for m in range(tile.rows * group):
                if not (ancestors[tile.row + m // group] >> bit) & np.uint32(1):
                    scores[j, m] = MASKED


def _attention(storage: type) -> Callable:
    """Returns the function that computes an item, for a cache with elements of a type."""
    itemsize, multiply = np.dtype(storage).itemsize, product_of(np.dtype(storage))
    weigh = softmax()

    @compiled
    def attend(frame: int, item: int) -> None:
        num_rows, num_heads, width = size(frame, _Q, 0), size(frame, _Q, 1), size(frame, _Q, 2)
        slots, capacity = size(frame, _CACHE, 1), size(frame, _CACHE, 2)
        kv_heads = _whole(frame, 0)
        group, tile = num_heads // kv_heads, _find(frame, item)
        out = carray(pointer(result(frame, 0)), (num_rows, num_heads, width), np.float32)
        if tile.slot == slots:
            out[tile.row :] = 0
            return
        q = carray(pointer(argument(frame, _Q)), (num_rows, num_heads, width), np.float32)
        factors = carray(pointer(argument(frame, _FACTORS)), (2,), np.float32)
        scale, soft_cap = factors[0], factors[1]
        layer = np.int64(carray(pointer(argument(frame, _LAYER)), (1,), np.int32)[0])
        holes = carray(pointer(argument(frame, _HOLES)), (slots, capacity), np.uint8)
        has_holes = size(frame, _HOLES, 0) > 0
        stride = size(frame, _CACHE, 3) * size(frame, _CACHE, 4) * itemsize
        start = argument(frame, _CACHE) + (layer * slots + tile.slot) * capacity * stride

        height = tile.rows * group
        columns = (height + LANES - 1) // LANES * LANES
        queries = np.zeros((tile.heads, width, columns), np.float32)
        mixed = np.zeros((tile.heads, width, columns), np.float32)
        for head in range(tile.heads):
            for m in range(height):
                source = q[tile.row + m // group, (tile.head + head) * group + m % group]
                for h in range(width):
                    queries[head, h, m] = source[h] * scale
        top = np.full((tile.heads, columns), MASKED, np.float32)
        total = np.zeros((tile.heads, columns), np.float32)
        scores = np.empty((_BLOCK, columns), np.float32)
        row, head_bytes = 4 * columns, width * itemsize
        end = tile.place + tile.rows
        # The next block is read ahead in order, some lines before each band of a product.
        bands = tile.heads * (_BLOCK + width) // _TOGETHER
        lines = (
            (_BLOCK * stride // 64 + bands - 1) // bands
            if tile.heads == kv_heads and tile.rows <= _FEW_ROWS
            else 0
        )
        for first in range(
            max(tile.place - _whole(frame, 1) + 1, 0) // _BLOCK * _BLOCK, end, _BLOCK
        ):
            tokens, keys = min(_BLOCK, end - first), start + first * stride
            ahead = keys + _BLOCK * stride
            for head in range(tile.heads):
                key = keys + (tile.head + head) * head_bytes
                value = key + kv_heads * head_bytes
                at = scores.ctypes.data
                for j in range(0, tokens, _TOGETHER):
                    for line in range(lines):
                        prefetch(ahead + 64 * line)
                    ahead += 64 * lines
                    few = min(_TOGETHER, tokens - j)
                    ours = Product(
                        key + j * stride,
                        stride,
                        itemsize,
                        queries[head].ctypes.data,
                        row,
                        at + j * row,
                        row,
                        width,
                    )
                    multiply(ours, few, columns, False)
                if soft_cap > 0:
                    soften(scores, tokens, soft_cap)
                _mask(frame, tile, group, first, tokens, scores)
                weigh(
                    Block(
                        at,
                        row,
                        tokens,
                        top[head].ctypes.data,
                        total[head].ctypes.data,
                        mixed[head].ctypes.data,
                        width,
                    ),
                    columns,
                )
                j = 0
                while j < tokens:
                    # Holes may hold NaN, and 0 * NaN is NaN.
                    run = j
                    while j < tokens and not (has_holes and holes[tile.slot, first + j]):
                        j += 1
                    for h in range(0, width, _TOGETHER):
                        for line in range(lines):
                            prefetch(ahead + 64 * line)
                        ahead += 64 * lines
                        ours = Product(
                            value + run * stride + h * itemsize,
                            itemsize,
                            stride,
                            at + run * row,
                            row,
                            mixed[head, h].ctypes.data,
                            row,
                            j - run,
                        )
                        multiply(ours, min(_TOGETHER, width - h), columns, True)
                    j += 1
        for head in range(tile.heads):
            for m in range(height):
                share = np.float32(1) / (total[head, m] if total[head, m] != 0 else np.float32(1))
                there = out[tile.row + m // group, (tile.head + head) * group + m % group]
                for h in range(width):
                    there[h] = mixed[head, h, m] * share

    return attend


def register_kernel(name: str, dtype: np.dtype) -> None:
    """Makes the kernel for caches of a type, float32 or uint16, available to XLA as `name`."""
    sources = (__file__, cpu_softmax.__file__, small_products.__file__)
    register(name, _count, _attention(dtype.type), sources)
