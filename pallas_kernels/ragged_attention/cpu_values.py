"""Sums of weighted values of attention on CPU, in vector instructions.

Values are read in vectors along a head's numbers, where they lie in the cache, and each number of
the result adds its terms in the order of the tokens. So a column, which is a row's query head,
depends neither on how many columns there are nor on the processor's vectors.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from emsjax.pallas_kernels.cpu_ahead import Ahead, reader
from emsjax.pallas_kernels.host_call import compiled
from emsjax.pallas_kernels.small_products import (
    FLOAT,
    HAS_AVX512,
    WORD,
    in_all_lanes,
    load_numbers,
    vector_function,
)

# How many columns, and how many vectors of how many numbers, are computed at once. The largest
# block nearly fills the registers: 32 of 16 lanes with AVX-512, else 16 of 8.
_COLUMNS, _VECTORS, _LANES = ((6, 3, 1), 4, 16) if HAS_AVX512 else ((3, 1), 3, 8)


class Values(NamedTuple):
    """What the weighted values of a block of tokens are added to. Addresses and strides in bytes.

    Attributes:
      values: address of the first token's values, [tokens, width].
      values_row: stride between its rows.
      weights: address of float32[tokens, columns].
      weights_row: stride between its rows.
      decays: address of float32[columns], the factors on the sums so far.
      sums: address of float32[columns, width], without gaps.
      tokens: how many tokens there are.
      width: H.
      ahead: what to read ahead, a step for each token.
    """

    values: Any
    values_row: Any
    weights: Any
    weights_row: Any
    decays: Any
    sums: Any
    tokens: Any
    width: Any
    ahead: Any


def _block(columns: int, vectors: int, lanes: int, dtype: np.dtype) -> Any:
    """Returns a compiled function for some columns and `vectors * lanes` numbers of each.

    It takes the values, the first column and the first number.
    """
    kind = ir.VectorType(FLOAT, lanes)

    @intrinsic
    def add(typing: Any, values: Any, column: Any, number: Any) -> Any:
        del typing, column, number

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            del signature
            p = Values(*cgutils.unpack_tuple(builder, args[0]))
            read_ahead = reader(builder, Ahead(*cgutils.unpack_tuple(builder, p.ahead)))
            multiply_add = vector_function(builder, "fmuladd", kind, 3)

            def place(start: Any, index: Any, step: Any) -> Any:
                return builder.add(start, builder.mul(index, step))

            def beyond(start: Any, numbers: int, itemsize: int = 4) -> Any:
                return builder.add(start, WORD(numbers * itemsize))

            def loaded_in_all_lanes(address: Any) -> Any:
                number = builder.load(builder.inttoptr(address, FLOAT.as_pointer()), align=4)
                return in_all_lanes(builder, number, lanes)

            decays, weights = (place(each, args[1], WORD(4)) for each in (p.decays, p.weights))
            first = builder.add(builder.mul(args[1], p.width), args[2])
            start = place(p.sums, first, WORD(4))
            sums: list[list[Any]] = []
            for column in range(columns):
                row = place(start, p.width, WORD(4 * column))
                each = [
                    builder.inttoptr(beyond(row, n * lanes), kind.as_pointer())
                    for n in range(vectors)
                ]
                sums.append(each)
            totals = []
            for column, each in enumerate(sums):
                decay = loaded_in_all_lanes(beyond(decays, column))
                kept = [builder.fmul(builder.load(one, align=4), decay) for one in each]
                totals.append([cgutils.alloca_once_value(builder, one) for one in kept])
            values_of = place(p.values, args[2], WORD(dtype.itemsize))
            with cgutils.for_range(builder, p.tokens) as loop:
                read_ahead()
                token = place(values_of, loop.index, p.values_row)
                numbers = [
                    load_numbers(builder, beyond(token, n * lanes, dtype.itemsize), dtype, lanes)
                    for n in range(vectors)
                ]
                row = place(weights, loop.index, p.weights_row)
                for column, each in enumerate(totals):
                    weight = loaded_in_all_lanes(beyond(row, column))
                    for number, total in zip(numbers, each, strict=True):
                        added = builder.call(multiply_add, [number, weight, builder.load(total)])
                        builder.store(added, total)
            for each, own in zip(sums, totals, strict=True):
                for one, total in zip(each, own, strict=True):
                    builder.store(builder.load(total), one, align=4)
            return context.get_dummy_value()

        return types.void(values, types.int64, types.int64), generate

    return add


def _columns_of(counts: tuple[int, ...], vectors: int, lanes: int, dtype: np.dtype) -> Callable:
    """Returns a compiled function for all columns from a given one on, see `_block`.

    It takes the values, that column, the number of columns, and the first number.
    """
    count, *fewer = counts
    block = _block(count, vectors, lanes, dtype)
    rest = _columns_of(tuple(fewer), vectors, lanes, dtype) if fewer else None

    @compiled
    def add(p: Values, column: int, columns: int, number: int) -> None:
        while columns - column >= count:
            block(p, column, number)
            column += count
        if rest is not None:
            rest(p, column, columns, number)

    return add


def add_values_of(dtype: np.dtype) -> Callable[[Values, int], None]:
    """Returns the compiled sums for values of float32, or of bfloat16 stored as uint16.

    It takes the values and the number of columns.
    """
    wide = _columns_of(_COLUMNS, _VECTORS, _LANES, dtype)
    narrow = _columns_of((_COLUMNS[0], 1), 1, 8, dtype)
    single = _columns_of((1,), 1, 1, dtype)
    widest = _VECTORS * _LANES

    @compiled
    def add(p: Values, columns: int) -> None:
        number = 0
        while p.width - number >= widest:
            wide(p, 0, columns, number)
            number += widest
        while p.width - number >= 8:
            narrow(p, 0, columns, number)
            number += 8
        while number < p.width:
            single(p, 0, columns, number)
            number += 1

    return add
