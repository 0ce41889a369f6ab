"""Ragged attention on CPU, compiled by Numba: loops over exactly the tokens that rows may see.

An item is a tile of a slot's rows and some of the heads. It walks over its slot's cache block by
block with an online softmax, like the reference, and uses keys and values where they lie, but those
of an int8 cache are first multiplied by their scales, a block at a time. The rows of a tile times
the query heads of a KV head are the columns of its matrices.

A row's result does not depend on the others. Blocks start at absolute positions, terms are added in
the order of the tokens, and tokens that a row does not see weigh exactly 0.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import carray

from emsjax.pallas_kernels import cpu_ahead, small_products
from emsjax.pallas_kernels.cpu_ahead import Ahead, Runs, spread
from emsjax.pallas_kernels.host_call import (
    argument,
    compiled,
    pointer,
    register,
    result,
    size,
)
from emsjax.pallas_kernels.ragged_attention import (
    cpu_softmax,
    cpu_tiles,
    cpu_values,
    cpu_widened,
)
from emsjax.pallas_kernels.ragged_attention.cpu_softmax import MASKED, Block, soften, softmax
from emsjax.pallas_kernels.ragged_attention.cpu_tiles import (
    ANCESTORS,
    CACHE,
    FACTORS,
    FEW_ROWS,
    HOLES,
    LAYER,
    SINKS,
    Q,
    Tile,
    count,
    find,
    whole,
)
from emsjax.pallas_kernels.ragged_attention.cpu_values import Values, add_values_of
from emsjax.pallas_kernels.ragged_attention.cpu_widened import Place, widened_for
from emsjax.pallas_kernels.small_products import LANES, Product, product_of

_BLOCK = 32  # tokens whose keys and values fit into the fastest cache
_TOGETHER = 8  # tokens of a product, so that a step of reading ahead is one for each term


@compiled
def _holes(frame: int, slot: int) -> np.ndarray:
    """Returns which tokens of a slot are holes; empty if no slot has any."""
    slots, capacity = size(frame, HOLES, 0), size(frame, HOLES, 1)
    holes = carray(pointer(argument(frame, HOLES)), (slots, capacity), np.uint8)
    return holes[slot] if slots > 0 else np.empty(0, np.uint8)


@compiled
def _lag(ancestors: Any, place: Any) -> Any:
    """Returns how many rows of its slot before a row of a tree are not its ancestors."""
    if ancestors == np.uint32(0xFFFFFFFF):
        return 0  # a chain, whose rows may be more than there are bits
    count = np.int64(0)
    for bit in range(32):
        count += np.int64((ancestors >> np.uint32(bit)) & np.uint32(1))
    return place + 1 - count


@compiled
def _least_position(frame: int, tile: Tile) -> Any:
    """Returns a bound on the positions of the tile's rows, from below."""
    if size(frame, ANCESTORS, 0) == 0:
        return tile.place
    return max(tile.draft, tile.place - 31)  # the most that `_lag` returns


@compiled
def _hidden(frame: int, tile: Tile) -> tuple:
    """Returns the tokens at the beginning, of sinks, and those after them that no row sees.

    Both in whole blocks.
    """
    seen = max(_least_position(frame, tile) - whole(frame, 1) + 1, 0) // _BLOCK * _BLOCK
    sinks = min((whole(frame, 2) + _BLOCK - 1) // _BLOCK * _BLOCK, seen)
    return sinks, seen - sinks


@compiled
def _mask(frame: int, tile: Tile, group: int, first: int, tokens: int, scores: np.ndarray) -> None:
    """Marks the scores of tokens that the rows do not see."""
    window, holes, last = whole(frame, 1), _holes(frame, tile.slot), tile.place + tile.rows - 1
    sink_tokens = whole(frame, 2)
    ancestors = carray(pointer(argument(frame, ANCESTORS)), (size(frame, Q, 0),), np.uint32)
    tree = size(frame, ANCESTORS, 0) > 0
    branches = tree and first + tokens > tile.draft
    causal = first + tokens - 1 > tile.place or first <= last - window
    if not (causal or branches or len(holes) > 0):
        return  # all rows see all tokens
    for j in range(tokens):
        # A token is seen from the row at its own position to the last one in its window.
        seen = min(max(first + j - tile.place, 0), tile.rows) * group
        past = min(max(first + j - tile.place + window, 0), tile.rows) * group
        if tree or first + j < sink_tokens:  # for trees see below
            past = tile.rows * group
        if len(holes) > 0 and holes[first + j]:
            past = 0
        for m in range(seen):
            scores[j, m] = MASKED
        for m in range(past, scores.shape[1]):
            scores[j, m] = MASKED
        if tree and sink_tokens <= first + j <= last - window:
            for m in range(tile.rows * group):
                place = tile.place + m // group
                behind = _lag(ancestors[tile.row + m // group], place - tile.draft)
                if first + j <= place - behind - window:
                    scores[j, m] = MASKED
        if branches and first + j >= tile.draft:
            bit = np.uint32(min(first + j - tile.draft, 31))
            for m in range(tile.rows * group):
                if not (ancestors[tile.row + m // group] >> bit) & np.uint32(1):
                    scores[j, m] = MASKED


@compiled
def _scratch(frame: int, tile: Tile, group: int, columns: int, scale: float) -> np.ndarray:
    """Returns the memory of an item, float32[rows, columns].

    Its rows are the tile's queries times the scale [heads * H], the memory of the sums of weighted
    values, which are 0, [heads * H], the largest scores [heads], which are MASKED, the sums of
    weights [heads], which are 0, factors on the sums, and one row for each score of a block. With
    sinks, a head's largest score is its sink, which weighs 1. One array is compiled faster than
    six.
    """
    num_rows, num_heads, width = size(frame, Q, 0), size(frame, Q, 1), size(frame, Q, 2)
    q = carray(pointer(argument(frame, Q)), (num_rows, num_heads, width), np.float32)
    sinks = carray(pointer(argument(frame, SINKS)), (size(frame, SINKS, 0),), np.float32)
    tops = 2 * tile.heads * width
    scratch = np.empty((tops + 2 * tile.heads + 1 + _BLOCK, columns), np.float32)
    for row in range(tops + 2 * tile.heads):
        for m in range(columns):
            scratch[row, m] = MASKED if tops <= row < tops + tile.heads else np.float32(0)
    for head in range(tile.heads):
        for m in range(tile.rows * group):
            number = (tile.head + head) * group + m % group
            source = q[tile.row + m // group, number]
            for h in range(width):
                scratch[head * width + h, m] = source[h] * scale
            if len(sinks) > 0:
                scratch[tops + head, m] = sinks[number]
                scratch[tops + tile.heads + head, m] = np.float32(1)
    return scratch


@compiled
def _write(frame: int, tile: Tile, group: int, scratch: np.ndarray) -> None:
    """Divides the sums of weighted values by those of weights, and writes the result."""
    num_rows, num_heads, width = size(frame, Q, 0), size(frame, Q, 1), size(frame, Q, 2)
    out = carray(pointer(result(frame, 0)), (num_rows, num_heads, width), np.float32)
    shape = tile.heads, scratch.shape[1], width
    start = np.int64(scratch.ctypes.data) + tile.heads * width * scratch.strides[0]
    sums = carray(pointer(start), shape, np.float32)
    totals = (2 * width + 1) * tile.heads
    for head in range(tile.heads):
        for m in range(tile.rows * group):
            total = scratch[totals + head, m]
            share = np.float32(1) / (total if total != 0 else np.float32(1))
            target = out[tile.row + m // group, (tile.head + head) * group + m % group]
            for h in range(width):
                target[h] = sums[head, m, h] * share


@compiled
def _clear(frame: int, first: int) -> None:
    """Clears the results of the rows from `first` on, which are not used."""
    num_rows, num_heads, width = size(frame, Q, 0), size(frame, Q, 1), size(frame, Q, 2)
    carray(pointer(result(frame, 0)), (num_rows, num_heads, width), np.float32)[first:] = 0


@compiled
def _runs(frame: int, tile: Tile, block: int, stride: int, itemsize: int, part: Any) -> Runs:
    """Returns what to read of the block after the one at an address.

    Its tokens are a stride apart. Each head's scores and each head's values have a part of it to
    read, numbered in this order. A tile of many rows computes for so long that nothing needs to be
    read ahead.
    """
    kv_heads, width = whole(frame, 0), size(frame, Q, 2)
    start, run = block + _BLOCK * stride, width * itemsize
    if tile.heads == kv_heads:  # a part is some tokens
        tokens = (_BLOCK + 2 * kv_heads - 1) // (2 * kv_heads)
        start, run = start + part * tokens * stride, 2 * kv_heads * run
    else:  # a part is a head's keys or values
        tokens = _BLOCK
        start += (tile.head + part // 2 + part % 2 * kv_heads) * run
    return Runs(start, run, stride, tokens * run if tile.rows <= FEW_ROWS else 0)


@compiled
def _share(runs: Runs, first: Any, end: Any, steps: Any) -> Ahead:
    """Returns what to read beside some tokens of a block, of what to read beside all of them."""
    return spread(runs, runs.size * first // _BLOCK, runs.size * end // _BLOCK, steps)


@compiled
def _layer(frame: int) -> Any:
    """Returns the layer of the cache to read."""
    return np.int64(carray(pointer(argument(frame, LAYER)), (1,), np.int32)[0])


@compiled
def _factors(frame: int) -> tuple:
    """Returns the factor on the scores and their soft cap, 0 for none."""
    factors = carray(pointer(argument(frame, FACTORS)), (2,), np.float32)
    return factors[0], factors[1]


def _scores_of(dtype: np.dtype) -> Callable[[Product, int, int], None]:
    """Returns a compiled product with a block's keys, whose elements are of a type.

    It takes the matrices, whose `ahead` is `Runs` that it divides, and the numbers of rows and
    columns.
    """
    multiply = product_of(dtype)

    @compiled
    def multiply_all(p: Product, rows: int, columns: int) -> None:
        for row in range(0, rows, _TOGETHER):
            left, out = p.left + row * p.left_row, p.out + row * p.out_row
            ahead = _share(p.ahead, row, row + _TOGETHER, p.terms)
            some = Product(
                left, p.left_row, p.left_term, p.right, p.right_term, out, p.out_row, p.terms, ahead
            )
            multiply(some, min(_TOGETHER, rows - row), columns)

    return multiply_all


def _values_of(dtype: np.dtype) -> Callable[[Values, int, np.ndarray], None]:
    """Returns a compiled function that adds a block's values, whose elements are of a type.

    It takes the values, whose `ahead` is `Runs` that it divides, the number of columns, and which
    tokens are holes, empty if none is. Holes may hold NaN, and 0 * NaN is NaN, so they are left
    out.
    """
    add = add_values_of(dtype)

    @compiled
    def add_all(p: Values, columns: int, holes: np.ndarray) -> None:
        decays = carray(pointer(p.decays), (columns,), np.float32)
        token: Any = 0
        while token < p.tokens or token == 0:
            first = token
            while token < p.tokens and not (len(holes) > 0 and holes[token]):
                token += 1
            values, weights = p.values + first * p.values_row, p.weights + first * p.weights_row
            ahead = _share(p.ahead, first, token, token - first)
            some = Values(
                values,
                p.values_row,
                weights,
                p.weights_row,
                p.decays,
                p.sums,
                token - first,
                p.width,
                ahead,
            )
            add(some, columns)
            decays[:] = 1  # the next ones are added to sums of the same scale
            token += 1

    return add_all


def _attention(storage: type) -> Callable:
    """Returns the function that computes an item, for a cache with elements of a type."""
    widened, multiplied = widened_for(storage)
    itemsize, term = np.dtype(storage).itemsize, multiplied.itemsize
    score, weigh, add_values = _scores_of(multiplied), softmax(), _values_of(multiplied)

    @compiled
    def attend(frame: int, item: int) -> None:
        tile = find(frame, item)
        slots, capacity = size(frame, CACHE, 1), size(frame, CACHE, 2)
        if tile.slot == slots:
            _clear(frame, tile.row)
            return
        kv_heads, width = whole(frame, 0), size(frame, Q, 2)
        group = size(frame, Q, 1) // kv_heads
        scale, soft_cap = _factors(frame)
        layer, holes = _layer(frame), _holes(frame, tile.slot)
        stride = size(frame, CACHE, 3) * size(frame, CACHE, 4) * itemsize
        start = argument(frame, CACHE) + (layer * slots + tile.slot) * capacity * stride

        columns = (tile.rows * group + LANES - 1) // LANES * LANES
        scratch = _scratch(frame, tile, group, columns, scale)
        row, end = 4 * columns, tile.place + tile.rows
        queries = np.int64(scratch.ctypes.data)
        mixed = queries + tile.heads * width * row
        tops, each = mixed + tile.heads * width * row, tile.heads * row
        totals, decays, at = tops + each, tops + 2 * each, tops + 2 * each + row
        scores = scratch[2 * tile.heads * (width + 1) + 1 :]
        wide = np.empty((_BLOCK, width), np.float32)
        sinks, hidden = _hidden(frame, tile)
        for place in range(hidden, end, _BLOCK):
            first = place if place >= sinks + hidden else place - hidden
            tokens, block = min(_BLOCK, end - first), start + first * stride
            for head in range(tile.heads):
                source = Place(layer, tile.slot, first, tokens, tile.head + head)
                keys, step = widened(frame, block, stride, source, wide)
                q, sums = queries + head * width * row, mixed + head * width * row
                runs = _runs(frame, tile, block, stride, itemsize, 2 * head)
                scored = Product(keys, step, term, q, row, at, row, width, runs)
                score(scored, tokens, columns)
                if soft_cap > 0:
                    soften(scores, tokens, soft_cap)
                _mask(frame, tile, group, first, tokens, scores)
                top, total = tops + head * row, totals + head * row
                weigh(Block(at, row, tokens, top, total, decays), columns)
                source = Place(layer, tile.slot, first, tokens, kv_heads + tile.head + head)
                values, step = widened(frame, block, stride, source, wide)
                runs = _runs(frame, tile, block, stride, itemsize, 2 * head + 1)
                seen = Values(values, step, at, row, decays, sums, tokens, width, runs)
                add_values(seen, tile.rows * group, holes[first:])
        _write(frame, tile, group, scratch)

    return attend


def register_kernel(name: str, dtype: np.dtype, register: Callable[..., object] = register) -> None:
    """Makes the kernel for caches of a type, float32, uint16 or int8, available to XLA as `name`.

    Args:
      name: of the foreign function.
      dtype: of the cache's elements.
      register: `host_call.register`, or `compile_run` only to compile.
    """
    modules = (cpu_ahead, cpu_softmax, cpu_tiles, cpu_values, cpu_widened, small_products)
    sources = [__file__, *(str(each.__file__) for each in modules)]
    register(name, count, _attention(dtype.type), sources)
