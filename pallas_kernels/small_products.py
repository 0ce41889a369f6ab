"""Products of small matrices on CPU: the inner loop of every CPU kernel, in vector instructions.

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

from emsjax.pallas_kernels.host_call import compiled

LANES = 8  # the number of columns is a multiple of this
_FLOAT, _WORD, _INDEX = ir.FloatType(), ir.IntType(64), ir.IntType(32)


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
    """

    left: Any
    left_row: Any
    left_term: Any
    right: Any
    right_term: Any
    out: Any
    out_row: Any
    terms: Any


def _block(rows: int, lanes: int, dtype: np.dtype) -> Any:
    """Returns a compiled function that computes a block [rows, lanes] of a product.

    Its second argument says whether to add to what the result holds.
    """
    vector = ir.VectorType(_FLOAT, lanes)
    zeros = ir.Constant(vector, [0.0] * lanes)
    first_lane = ir.Constant(ir.VectorType(_INDEX, lanes), [0] * lanes)

    def load_number(builder: Any, address: Any) -> Any:
        """Loads a float32, or a bfloat16 stored as uint16, as a float32."""
        if dtype == np.float32:
            return builder.load(builder.inttoptr(address, _FLOAT.as_pointer()), align=4)
        half = builder.load(builder.inttoptr(address, ir.IntType(16).as_pointer()), align=2)
        return builder.bitcast(builder.shl(builder.zext(half, _INDEX), _INDEX(16)), _FLOAT)

    @intrinsic
    def multiply(typing: Any, product: Any, adds: Any) -> Any:
        del typing

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            del signature
            p = Product(*cgutils.unpack_tuple(builder, args[0]))
            name, kind = f"llvm.fmuladd.v{lanes}f32", ir.FunctionType(vector, [vector] * 3)
            multiply_add = cgutils.get_or_insert_function(builder.module, kind, name)

            def row_of(start: Any, stride: Any, row: int) -> Any:
                return builder.add(start, builder.mul(stride, _WORD(row)))

            def vector_at(address: Any) -> Any:
                return builder.inttoptr(address, vector.as_pointer())

            sums = [cgutils.alloca_once_value(builder, zeros) for _ in range(rows)]
            outs = [vector_at(row_of(p.out, p.out_row, row)) for row in range(rows)]
            with builder.if_then(args[1]):
                for total, out in zip(sums, outs, strict=True):
                    builder.store(builder.load(out, align=4), total)
            left = cgutils.alloca_once_value(builder, p.left)
            right = cgutils.alloca_once_value(builder, p.right)
            with cgutils.for_range(builder, p.terms):
                start = builder.load(left)
                numbers = builder.load(vector_at(builder.load(right)), align=4)
                for row, total in enumerate(sums):
                    factor = load_number(builder, row_of(start, p.left_row, row))
                    single = builder.insert_element(zeros, factor, _INDEX(0))
                    factors = builder.shuffle_vector(single, zeros, first_lane)
                    added = builder.call(multiply_add, [factors, numbers, builder.load(total)])
                    builder.store(added, total)
                builder.store(builder.add(start, p.left_term), left)
                builder.store(builder.add(builder.load(right), p.right_term), right)
            for total, out in zip(sums, outs, strict=True):
                builder.store(builder.load(total), out, align=4)
            return context.get_dummy_value()

        return types.void(product, adds), generate

    return multiply


def _band(rows: int, widths: tuple[int, int, int], dtype: np.dtype) -> Callable:
    """Returns the compiled product of a fixed number of rows, block after block."""
    wide, middle, narrow = (_block(rows, lanes, dtype) for lanes in widths)
    lanes, half, least = widths

    @compiled
    def multiply(p: Product, columns: int, adds: bool) -> None:
        column = 0
        while columns - column >= lanes:
            wide(_part(p, 0, column), adds)
            column += lanes
        while columns - column >= half:
            middle(_part(p, 0, column), adds)
            column += half
        while columns - column >= least:
            narrow(_part(p, 0, column), adds)
            column += least

    return multiply


@compiled
def _part(p: Product, row: int, column: int) -> Product:
    """Returns the product without the rows and columns before these."""
    left, out = p.left + row * p.left_row, p.out + row * p.out_row + 4 * column
    right = p.right + 4 * column
    return Product(left, p.left_row, p.left_term, right, p.right_term, out, p.out_row, p.terms)


def product_of(dtype: np.dtype) -> Callable[[Product, int, int, bool], None]:
    """Returns the compiled product for a left matrix of float32, or bfloat16 stored as uint16.

    It takes the matrices, the numbers of rows and columns, and whether to add to what the result
    holds.
    """
    # A block should fill the registers but not more: 32 of 16 lanes with AVX-512, else 16 of 8.
    features = str(cpu_target.target_context.codegen().magic_tuple())
    height, widest = (8, 32) if "+avx512f" in features else (4, 16)
    band, row_alone = (_band(rows, (widest, 16, LANES), dtype) for rows in (height, 1))

    @compiled
    def multiply(p: Product, rows: int, columns: int, adds: bool) -> None:
        row = 0
        while rows - row >= height:
            band(_part(p, row, 0), columns, adds)
            row += height
        while row < rows:
            row_alone(_part(p, row, 0), columns, adds)
            row += 1

    return multiply
