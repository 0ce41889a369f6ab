"""Products of small matrices on CPU: the inner loop of attention, in vector instructions.

The left matrix is read number by number with any stride, so weights and caches are used where they
lie. The right one is read in vectors along its rows. A block of the result stays in registers while
its terms are added in order. A column of the result therefore depends on that column alone, and
neither on how many there are nor on the processor's vectors.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from emsjax.pallas_kernels.cpu_ahead import Ahead, reader
from emsjax.pallas_kernels.host_call import compiled

LANES = 8  # the number of columns is a multiple of this
FLOAT, WORD, INDEX = ir.FloatType(), ir.IntType(64), ir.IntType(32)
# Whether there are 32 registers of 16 numbers; otherwise there are 16 of 8.
HAS_AVX512 = "+avx512f" in str(cpu_target.target_context.codegen().magic_tuple())


class Product(NamedTuple):
    """The matrices of `out = left @ right`. Addresses and strides are in bytes.

    Attributes:
      left: address of the left matrix, [rows, terms].
      left_row: stride between its rows.
      left_term: stride between its columns.
      right: address of the right matrix, float32[terms, columns].
      right_term: stride between its rows.
      out: address of the result, float32[rows, columns].
      out_row: stride between its rows.
      terms: how many products are added for each number of the result.
      ahead: what to read ahead, a step for each term of the first rows and columns.
    """

    left: Any
    left_row: Any
    left_term: Any
    right: Any
    right_term: Any
    out: Any
    out_row: Any
    terms: Any
    ahead: Any


def vector_function(builder: Any, name: str, vector: Any, operands: int) -> Any:
    """Returns LLVM's function of this name on vectors, to be called by the builder."""
    kind = ir.FunctionType(vector, [vector] * operands)
    full_name = f"llvm.{name}.v{vector.count}f32"
    return cgutils.get_or_insert_function(builder.module, kind, full_name)


def load_number(builder: Any, address: Any, dtype: np.dtype) -> Any:
    """Loads a float32, a bfloat16 stored as uint16, or an int8 as a float32."""
    if dtype == np.float32:
        return builder.load(builder.inttoptr(address, FLOAT.as_pointer()), align=4)
    stored = ir.IntType(8 * dtype.itemsize).as_pointer()
    number = builder.load(builder.inttoptr(address, stored), align=dtype.itemsize)
    if dtype == np.int8:
        return builder.sitofp(number, FLOAT)
    return builder.bitcast(builder.shl(builder.zext(number, INDEX), INDEX(16)), FLOAT)


def load_numbers(builder: Any, address: Any, dtype: np.dtype, lanes: int) -> Any:
    """Loads as many numbers as a vector has lanes, of the same types, as float32."""
    vector, wide = ir.VectorType(FLOAT, lanes), ir.VectorType(INDEX, lanes)
    if dtype == np.float32:
        return builder.load(builder.inttoptr(address, vector.as_pointer()), align=4)
    stored = ir.VectorType(ir.IntType(8 * dtype.itemsize), lanes).as_pointer()
    numbers = builder.load(builder.inttoptr(address, stored), align=dtype.itemsize)
    if dtype == np.int8:
        return builder.sitofp(builder.sext(numbers, wide), vector)
    shift = ir.Constant(wide, [16] * lanes)
    return builder.bitcast(builder.shl(builder.zext(numbers, wide), shift), vector)


def in_all_lanes(builder: Any, number: Any, lanes: int) -> Any:
    """Returns a vector that has a float32 in all lanes."""
    single = builder.insert_element(
        ir.Constant(ir.VectorType(FLOAT, lanes), None), number, INDEX(0)
    )
    first_lane = ir.Constant(ir.VectorType(INDEX, lanes), [0] * lanes)
    return builder.shuffle_vector(single, single, first_lane)


def _block(rows: int, lanes: int, dtype: np.dtype) -> Any:
    """Returns a compiled function that computes a block [rows, lanes] of a product.

    It takes the product, and the block's first row and column.
    """
    vector = ir.VectorType(FLOAT, lanes)
    zeros = ir.Constant(vector, [0.0] * lanes)

    @intrinsic
    def multiply(typing: Any, product: Any, first: Any, column: Any) -> Any:
        del typing

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            del signature
            p = Product(*cgutils.unpack_tuple(builder, args[0]))
            read_ahead = reader(builder, Ahead(*cgutils.unpack_tuple(builder, p.ahead)), once=True)
            multiply_add = vector_function(builder, "fmuladd", vector, 3)

            def row_of(start: Any, stride: Any, row: Any) -> Any:
                return builder.add(start, builder.mul(stride, row))

            def vector_at(address: Any) -> Any:
                return builder.inttoptr(address, vector.as_pointer())

            offset = builder.mul(args[2], WORD(4))
            first_row = row_of(p.left, p.left_row, args[1])
            out = builder.add(row_of(p.out, p.out_row, args[1]), offset)
            sums = [cgutils.alloca_once_value(builder, zeros) for _ in range(rows)]
            outs = [vector_at(row_of(out, p.out_row, WORD(row))) for row in range(rows)]
            left = cgutils.alloca_once_value(builder, first_row)
            right = cgutils.alloca_once_value(builder, builder.add(p.right, offset))
            with cgutils.for_range(builder, p.terms):
                read_ahead()
                start = builder.load(left)
                numbers = builder.load(vector_at(builder.load(right)), align=4)
                for row, total in enumerate(sums):
                    factor = load_number(builder, row_of(start, p.left_row, WORD(row)), dtype)
                    factors = in_all_lanes(builder, factor, lanes)
                    added = builder.call(multiply_add, [factors, numbers, builder.load(total)])
                    builder.store(added, total)
                builder.store(builder.add(start, p.left_term), left)
                builder.store(builder.add(builder.load(right), p.right_term), right)
            for total, place in zip(sums, outs, strict=True):
                builder.store(builder.load(total), place, align=4)
            return context.get_dummy_value()

        return types.void(product, types.int64, types.int64), generate

    return multiply


def product_of(dtype: np.dtype) -> Callable[[Product, int, int], None]:
    """Returns the compiled product for a left matrix of float32, or bfloat16 stored as uint16.

    It takes the matrices, and the numbers of rows and columns.
    """
    # A block should fill the registers but not more: 32 of 16 lanes with AVX-512, else 16 of 8.
    height, widest = (8, 32) if HAS_AVX512 else (4, 16)
    wide, middle, narrow = (_block(height, lanes, dtype) for lanes in (widest, 16, LANES))
    wide_row, middle_row, narrow_row = (_block(1, lanes, dtype) for lanes in (widest, 16, LANES))

    @compiled
    def multiply(p: Product, rows: int, columns: int) -> None:
        row = 0
        while row < rows:
            few, column = rows - row < height, 0
            while column < columns:
                rest = columns - column
                if rest >= widest:
                    if few:
                        wide_row(p, row, column)
                    else:
                        wide(p, row, column)
                    column += widest
                elif rest >= 16:
                    if few:
                        middle_row(p, row, column)
                    else:
                        middle(p, row, column)
                    column += 16
                else:
                    if few:
                        narrow_row(p, row, column)
                    else:
                        narrow(p, row, column)
                    column += LANES
            row += 1 if few else height

    return multiply
