"""Products of a few rows with a few rows of weights on CPU, in vector instructions.

Both are read in vectors along the terms that are added, where they lie in memory. Lane l of a sum
adds the terms l, l + 16, l + 32, ... in order, and the lanes are added up in halves at the end. So
a result depends on its own row and weights alone, neither on how many rows there are nor on the
processor's vectors. Weights of fewer bits become floats in registers, which takes less time than
reading wider ones from memory.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from emsjax.pallas_kernels.cpu_ahead import Ahead, reader
from emsjax.pallas_kernels.cpu_rows import LANES
from emsjax.pallas_kernels.host_call import compiled
from emsjax.pallas_kernels.small_products import (
    FLOAT,
    HAS_AVX512,
    INDEX,
    WORD,
    in_all_lanes,
    load_number,
    load_numbers,
    vector_function,
)

_VECTOR = ir.VectorType(FLOAT, LANES)
_ZEROS = ir.Constant(_VECTOR, [0.0] * LANES)
# How many rows of weights, a power of two, are multiplied at once, and with how many other rows.
# The largest block's sums nearly fill the registers: 32 of 16 lanes with AVX-512, else 16 of 8.
OUTS, HEIGHTS = (4, (6, 4, 2, 1)) if HAS_AVX512 else (2, (3, 2, 1))
ROWS = HEIGHTS[0]


class Dots(NamedTuple):
    """What a product reads and writes. Addresses and strides are in bytes.

    Attributes:
      weights: address of `OUTS` rows of weights.
      weights_row: stride between them.
      x: address of the rows to multiply, float32[rows, terms].
      x_row: stride between them.
      steps: how many vectors of terms to add.
      sums: address of the sums so far, float32[rows, OUTS, LANES].
      out: address of the result, float32[rows, OUTS].
      out_row: stride between its rows.
      ahead: what to read ahead, a step for each vector of terms.
    """

    weights: Any
    weights_row: Any
    x: Any
    x_row: Any
    steps: Any
    sums: Any
    out: Any
    out_row: Any
    ahead: Any


def _added_up(builder: Any, vectors: list[Any]) -> Any:
    """Returns the sums of the lanes of each vector, side by side in one vector."""

    def add_halves(first: Any, second: Any, width: int) -> Any:
        """Adds the halves of each run of `width` lanes of two vectors, or of one."""
        both = first.type.count * (1 if second is None else 2)
        lanes = np.arange(both).reshape(-1, 2, width // 2)
        second = ir.Constant(first.type, ir.Undefined) if second is None else second
        halves = (
            ir.Constant(ir.VectorType(INDEX, both // 2), lanes[:, half].ravel().tolist())
            for half in (0, 1)
        )
        low, high = (builder.shuffle_vector(first, second, half) for half in halves)
        return builder.fadd(low, high)

    width = LANES
    while len(vectors) > 1:
        pairs = zip(vectors[0::2], vectors[1::2], strict=True)
        vectors = [add_halves(*pair, width) for pair in pairs]
        width //= 2
    (sums,) = vectors
    while width > 1:
        sums = add_halves(sums, None, width)
        width //= 2
    return sums


def _powers_of_two(count: int, most: int) -> Iterator[tuple[int, int]]:
    """Divides `count` into powers of two up to `most`; returns where each begins, and its size."""
    start = 0
    while start < count:
        size = min(most, 1 << (count - start).bit_length() - 1)
        yield start, size
        start += size


def _block(rows: int, dtype: np.dtype) -> Any:
    """Returns a compiled function that multiplies `rows` rows with `OUTS` rows of weights.

    It takes the product, whether its sums begin with 0, and whether they are complete after it.
    """

    @intrinsic
    def multiply(typing: Any, dots: Any, begins: Any, ends: Any) -> Any:
        del typing

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            del signature
            p, (_, begins, ends) = Dots(*cgutils.unpack_tuple(builder, args[0])), args
            read_ahead = reader(builder, Ahead(*cgutils.unpack_tuple(builder, p.ahead)))
            multiply_add = vector_function(builder, "fmuladd", _VECTOR, 3)

            def rows_at(start: Any, stride: Any, count: int) -> list[Any]:
                """Returns variables that hold the address of each row."""
                starts = [builder.add(start, builder.mul(stride, WORD(n))) for n in range(count)]
                return [cgutils.alloca_once_value(builder, each) for each in starts]

            def take(variable: Any, step: Any) -> Any:
                """Returns the address that a variable holds, and moves it on by a step."""
                address = builder.load(variable)
                builder.store(builder.add(address, step), variable)
                return address

            def vector_at(number: int) -> Any:
                place = builder.add(p.sums, WORD(4 * LANES * number))
                return builder.inttoptr(place, _VECTOR.as_pointer())

            sums = [cgutils.alloca_once_value(builder, _ZEROS) for _ in range(rows * OUTS)]
            with builder.if_then(builder.not_(begins)):
                for number, total in enumerate(sums):
                    builder.store(builder.load(vector_at(number), align=4), total)
            weights = rows_at(p.weights, p.weights_row, OUTS)
            x = rows_at(p.x, p.x_row, rows)
            with cgutils.for_range(builder, p.steps):
                read_ahead()
                step = WORD(4 * LANES)
                numbers = [
                    load_numbers(builder, take(row, step), np.dtype(np.float32), LANES) for row in x
                ]
                for out in range(OUTS):
                    address = take(weights[out], WORD(LANES * dtype.itemsize))
                    factors = load_numbers(builder, address, dtype, LANES)
                    for row in range(rows):
                        total = sums[row * OUTS + out]
                        terms = [factors, numbers[row], builder.load(total)]
                        builder.store(builder.call(multiply_add, terms), total)
            with builder.if_else(ends) as (complete, incomplete):
                with complete:
                    for row, count in _powers_of_two(rows, LANES // OUTS):
                        here = sums[row * OUTS : (row + count) * OUTS]
                        total = _added_up(builder, [builder.load(each) for each in here])
                        for each in range(count):
                            lanes = [each * OUTS + out for out in range(OUTS)]
                            own = ir.Constant(ir.VectorType(INDEX, OUTS), lanes)
                            outs = builder.shuffle_vector(total, total, own)
                            place = builder.add(p.out, builder.mul(p.out_row, WORD(row + each)))
                            pointer = builder.inttoptr(place, outs.type.as_pointer())
                            builder.store(outs, pointer, align=4)
                with incomplete:
                    for number, total in enumerate(sums):
                        builder.store(builder.load(total), vector_at(number), align=4)
            return context.get_dummy_value()

        return types.void(dots, types.boolean, types.boolean), generate

    return multiply


@compiled
def height_of(rows: int) -> int:
    """Returns how many of so many rows to multiply at once."""
    height: Any = 1
    for each in HEIGHTS[::-1]:
        height = each if rows >= each else height
    return height


def dots_of(dtype: np.dtype) -> Callable[[Dots, int, Any, Any], None]:
    """Returns the compiled product for weights of float32, bfloat16 as uint16, or int8.

    It takes the product, the number of rows, which is one of `HEIGHTS`, whether its sums begin with
    0, and whether they are complete after it.
    """
    return _block_of(HEIGHTS, dtype)


def _block_of(heights: tuple[int, ...], dtype: np.dtype) -> Callable:
    height, *lower = heights
    block = _block(height, dtype)
    others = _block_of(tuple(lower), dtype) if lower else None

    @compiled
    def multiply(dots: Dots, rows: int, begins: Any, ends: Any) -> None:
        if others is None or rows == height:
            block(dots, begins, ends)
        else:
            others(dots, rows, begins, ends)

    return multiply


def widen_of(dtype: np.dtype) -> Callable[[int, int, int], None]:
    """Returns a compiled function that turns numbers of a type into float32.

    It takes the address of the numbers, that of the result, and how many there are. The last
    vector of the result is filled up with zeros.
    """

    @intrinsic
    def widen(typing: Any, source: Any, target: Any, terms: Any) -> Any:
        del typing, source, target, terms

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            del signature
            source, target, terms = args
            lanes = WORD(LANES)

            def place(start: Any, index: Any, itemsize: int) -> Any:
                return builder.add(start, builder.mul(index, WORD(itemsize)))

            def write(value: Any, index: Any) -> None:
                address = place(target, index, 4)
                pointer = builder.inttoptr(address, value.type.as_pointer())
                builder.store(value, pointer, align=4)

            whole = builder.mul(builder.udiv(terms, lanes), lanes)
            with cgutils.for_range(builder, builder.udiv(terms, lanes)) as loop:
                index = builder.mul(loop.index, lanes)
                numbers = place(source, index, dtype.itemsize)
                write(load_numbers(builder, numbers, dtype, LANES), index)
            with builder.if_then(builder.icmp_signed("<", whole, terms)):
                write(_ZEROS, whole)
                with cgutils.for_range(builder, builder.sub(terms, whole)) as loop:
                    index = builder.add(whole, loop.index)
                    write(load_number(builder, place(source, index, dtype.itemsize), dtype), index)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), generate

    @compiled
    def call(source: int, target: int, terms: int) -> None:
        widen(source, target, terms)

    return call


@intrinsic
def widen_pairs(typing: Any, source: Any, target: Any, steps: Any, scale: Any, offset: Any) -> Any:
    """Turns pairs of 4-bit numbers, the first in the low bits, into `number * scale + offset`.

    It takes the addresses of the pairs and of the result, float32[steps, LANES].
    """
    del typing, source, target, steps, scale, offset

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        del signature
        source, target, steps, *factors = args
        pairs = ir.VectorType(ir.IntType(8), LANES // 2)
        in_turn = np.arange(LANES).reshape(2, -1).T.ravel().tolist()
        order = ir.Constant(ir.VectorType(INDEX, LANES), in_turn)

        def each(number: int) -> Any:
            return ir.Constant(pairs, [number] * (LANES // 2))

        def signed(bits: Any) -> Any:
            """The highest of four bits is the sign."""
            return builder.sub(builder.xor(bits, each(8)), each(8))

        scale, offset = (in_all_lanes(builder, x, LANES) for x in factors)
        with cgutils.for_range(builder, steps) as loop:
            place = builder.add(source, builder.mul(loop.index, WORD(LANES // 2)))
            both = builder.load(builder.inttoptr(place, pairs.as_pointer()), align=1)
            low, high = builder.and_(both, each(15)), builder.lshr(both, each(4))
            numbers = builder.shuffle_vector(signed(low), signed(high), order)
            numbers = builder.sext(numbers, ir.VectorType(INDEX, LANES))
            wide = builder.fmul(builder.sitofp(numbers, _VECTOR), scale)
            place = builder.add(target, builder.mul(loop.index, WORD(4 * LANES)))
            pointer = builder.inttoptr(place, _VECTOR.as_pointer())
            builder.store(builder.fadd(wide, offset), pointer, align=4)
        return context.get_dummy_value()

    word, number = types.int64, types.float32
    return types.void(word, word, word, number, number), generate
