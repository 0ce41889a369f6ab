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

from emsjax.pallas_kernels.host_call import argument, compiled, pointer, register, result, size
from emsjax.pallas_kernels.ragged_attention import cpu_block
from emsjax.pallas_kernels.ragged_attention.cpu_block import (
    BLOCK,
    MASKED,
    ONE,
    TOGETHER,
    gather,
    score,
    soften,
    weigh,
)

_HEIGHT = 96  # rows of a tile times query heads per KV head, at most
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
    """

    slot: Any
    row: Any
    rows: Any
    place: Any
    draft: Any


@compiled
def _whole(frame: int, index: int) -> Any:
    """Returns the number of KV heads (0) or the window (1)."""
    return np.int64(carray(pointer(argument(frame, _WHOLE)), (2,), np.int32)[index])


@compiled
def _tile_rows(frame: int) -> int:
    return max(_HEIGHT * _whole(frame, 0) // size(frame, _Q, 1), 1)


@compiled
def _tiles_of(rows: Any, most: int) -> Any:
    return (rows + most - 1) // most


@compiled
def _count(frame: int) -> int:
    slots, most = size(frame, _CACHE, 1), _tile_rows(frame)
    starts = carray(pointer(argument(frame, _STARTS)), (slots + 1,), np.int32)
    tiles = 0
    for slot in range(slots):
        tiles += _tiles_of(starts[slot + 1] - starts[slot], most)
    return tiles * _whole(frame, 0) + 1  # the last item clears unused rows


@compiled
def _find(frame: int, tile: Any) -> _Tile:
    slots, most = size(frame, _CACHE, 1), _tile_rows(frame)
    starts = carray(pointer(argument(frame, _STARTS)), (slots + 1,), np.int32)
    lens = carray(pointer(argument(frame, _LENS)), (slots,), np.int32)
    for slot in range(slots):
        rows = np.int64(starts[slot + 1] - starts[slot])
        tiles = _tiles_of(rows, most)
        if tile < tiles:
            before, draft = tile * most, lens[slot] - rows
            return _Tile(
                slot, starts[slot] + before, min(most, rows - before), draft + before, draft
            )
        tile -= tiles
    return _Tile(slots, np.int64(starts[slots]), 0, 0, 0)


@compiled
def _mask(frame: int, tile: _Tile, group: int, first: int, tokens: int, scores: np.ndarray) -> None:
    """Marks the scores of tokens that the rows do not see."""
    slots, capacity, window = size(frame, _CACHE, 1), size(frame, _CACHE, 2), _whole(frame, 1)
    ancestors = carray(pointer(argument(frame, _ANCESTORS)), (size(frame, _Q, 0),), np.uint32)
    holes = carray(pointer(argument(frame, _HOLES)), (slots, capacity), np.uint8)
    branches, has_holes = size(frame, _ANCESTORS, 0) > 0, size(frame, _HOLES, 0) > 0
    for m in range(scores.shape[0]):
        place = tile.place + m // group
        for j in range(max(place + 1 - first, 0), tokens):
            scores[m, j] = MASKED
        for j in range(min(place + 1 - window - first, tokens)):
            scores[m, j] = MASKED
        if has_holes:
            for j in range(min(tokens, capacity - first)):
                if holes[tile.slot, first + j]:
                    scores[m, j] = MASKED
        if branches:
            bits = ancestors[tile.row + m // group]
            for j in range(max(tile.draft - first, 0), tokens):
                if not (bits >> np.uint32(first + j - tile.draft)) & np.uint32(1):
                    scores[m, j] = MASKED


@compiled
def _read_float32(
    tokens: np.ndarray, key: int, value: int, k: np.ndarray, v: np.ndarray, row: int, nothing: float
) -> None:
    for h in range(k.shape[1]):
        # The sum keeps LLVM from calling memcpy, which takes several times as long here.
        k[row, h] = tokens[key + np.uint64(h)] + nothing
        v[row, h] = tokens[value + np.uint64(h)] + nothing


@compiled
def _read_bfloat16(
    tokens: np.ndarray, key: int, value: int, k: np.ndarray, v: np.ndarray, row: int, nothing: float
) -> None:
    k_bits, v_bits = k.view(np.uint32), v.view(np.uint32)
    for h in range(k.shape[1]):
        k_bits[row, h] = np.uint32(tokens[key + np.uint64(h)]) << np.uint32(16)
        v_bits[row, h] = np.uint32(tokens[value + np.uint64(h)]) << np.uint32(16)


def _attention(storage: type, read: Callable) -> Callable:
    """Returns the function that computes an item.

    Args:
      storage: element type of the cache.
      read: compiled function that copies a token's key and value to rows of float32.
    """
    itemsize = np.dtype(storage).itemsize

    @compiled
    def attend(frame: int, item: int) -> None:
        num_rows, num_heads, width = size(frame, _Q, 0), size(frame, _Q, 1), size(frame, _Q, 2)
        slots, capacity = size(frame, _CACHE, 1), size(frame, _CACHE, 2)
        lanes, kv_heads = size(frame, _CACHE, 3) * size(frame, _CACHE, 4), _whole(frame, 0)
        group, tile = num_heads // kv_heads, _find(frame, item // kv_heads)
        out = carray(pointer(result(frame, 0)), (num_rows, num_heads, width), np.float32)
        if tile.slot == slots:
            out[tile.row :] = 0
            return
        q = carray(pointer(argument(frame, _Q)), (num_rows, num_heads, width), np.float32)
        factors = carray(pointer(argument(frame, _FACTORS)), (3,), np.float32)
        scale, soft_cap, nothing = factors[0], factors[1], factors[2]
        layer = np.int64(carray(pointer(argument(frame, _LAYER)), (1,), np.int32)[0])
        holes = carray(pointer(argument(frame, _HOLES)), (slots, capacity), np.uint8)
        stride = lanes * itemsize
        start = argument(frame, _CACHE) + (layer * slots + tile.slot) * capacity * stride
        tokens = carray(pointer(start), (capacity * lanes,), storage)

        first_head, height = item % kv_heads * group, tile.rows * group
        key, value = item % kv_heads * width, (kv_heads + item % kv_heads) * width
        shape = (height, width)
        queries, mixed = np.empty(shape, np.float32), np.zeros(shape, np.float32)
        for m in range(height):
            for h in range(width):
                queries[m, h] = q[tile.row + m // group, first_head + m % group, h]
        top, total = np.full(height, MASKED, np.float32), np.zeros(height, np.float32)
        scores, bits = np.empty((height, BLOCK), np.float32), np.empty(BLOCK, np.int32)
        k, v = np.empty((BLOCK, width), np.float32), np.empty((BLOCK, width), np.float32)
        end = tile.place + tile.rows
        for first in range(max(tile.place - _whole(frame, 1) + 1, 0) // BLOCK * BLOCK, end, BLOCK):
            there = min(BLOCK, end - first)
            padded = (there + TOGETHER - 1) // TOGETHER * TOGETHER
            for j in range(there):
                token = np.uint64(first + j) * np.uint64(lanes)
                read(tokens, token + np.uint64(key), token + np.uint64(value), k, v, j, nothing)
            k[there:padded] = 0
            v[there:padded] = 0
            if size(frame, _HOLES, 0) > 0:
                for j in range(there):
                    if holes[tile.slot, first + j]:
                        v[j] = 0  # holes may hold NaN, and 0 * NaN is NaN
            ahead = start + (first + BLOCK) * stride
            score(queries, k, scores, padded, scale, ahead + key * itemsize, stride)
            if soft_cap > 0:
                soften(scores, padded, soft_cap)
            _mask(frame, tile, group, first, padded, scores)
            for m in range(height):
                weigh(scores, m, padded, top, total, mixed, bits)
            gather(scores, v, mixed, padded, ahead + value * itemsize, stride)
        for m in range(height):
            share = ONE / (total[m] if total[m] != 0 else ONE)
            for h in range(width):
                out[tile.row + m // group, first_head + m % group, h] = mixed[m, h] * share

    return attend


def register_kernel(name: str, dtype: np.dtype) -> None:
    """Makes the kernel for caches of a type, float32 or uint16, available to XLA as `name`."""
    read = _read_float32 if dtype == np.float32 else _read_bfloat16
    register(name, _count, _attention(dtype.type, read), (__file__, cpu_block.__file__))
