"""The softmax of attention on CPU for one block of a slot's tokens, in vector instructions.

Scores lie token by token, [tokens, columns], where a column is a row's query head. A vector holds
the same token's scores of several columns, so no column depends on the ones next to it.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from emsjax.pallas_kernels.host_call import compiled
from emsjax.pallas_kernels.small_products import FLOAT, INDEX, LANES, WORD, vector_function

# The score of a masked token, as in the reference.
MASKED = np.float32(-1e30)

# 2**x is the sum of these times powers of x, for x from -0.5 to 0.5.
_TERMS = [math.log(2) ** n / math.factorial(n) for n in range(7)]
_LEAST = -127.0  # the exponent at which a float32 becomes 0


@compiled
def soften(scores: np.ndarray, tokens: int, cap: float) -> None:
    """Replaces each score x by cap * tanh(x / cap)."""
    for j in range(tokens):
        for m in range(scores.shape[1]):
            scores[j, m] = cap * np.float32(math.tanh(scores[j, m] / cap))


class Block(NamedTuple):
    """What the softmax of a block of tokens reads and writes. Addresses and strides are in bytes.

    Attributes:
      scores: address of float32[tokens, columns], MASKED where a column does not see a token;
        becomes the weights.
      row: stride between the rows of `scores`.
      tokens: how many tokens there are.
      top: address of float32[columns], the largest score so far.
      total: address of float32[columns], the sum of weights so far; NaN once a visible score is NaN
        or infinite.
      decay: address of float32[columns], set to the factors that bring the sums of weighted values
        so far to the scale of the new weights.
    """

    scores: Any
    row: Any
    tokens: Any
    top: Any
    total: Any
    decay: Any


def _all_lanes(lanes: int, number: Any) -> Any:
    return ir.Constant(ir.VectorType(FLOAT, lanes), [float(np.float32(number))] * lanes)


def _exponential(builder: Any, x: Any, lanes: int) -> Any:
    """Computes exp(x) for x up to 0 as a power of two and a polynomial; NaN becomes 0."""
    vector, whole = ir.VectorType(FLOAT, lanes), ir.VectorType(INDEX, lanes)
    multiply_add = vector_function(builder, "fmuladd", vector, 3)
    floor = vector_function(builder, "floor", vector, 1)
    exponent = builder.fmul(x, _all_lanes(lanes, math.log2(math.e)))
    large = builder.fcmp_ordered(">", exponent, _all_lanes(lanes, _LEAST))
    exponent = builder.select(large, exponent, _all_lanes(lanes, _LEAST))
    rounded = builder.call(floor, [builder.fadd(exponent, _all_lanes(lanes, 0.5))])
    rest = builder.fsub(exponent, rounded)
    series = _all_lanes(lanes, _TERMS[-1])
    for term in reversed(_TERMS[:-1]):
        series = builder.call(multiply_add, [rest, series, _all_lanes(lanes, term)])
    bias, shift = ir.Constant(whole, [127] * lanes), ir.Constant(whole, [23] * lanes)
    bits = builder.shl(builder.add(builder.fptosi(rounded, whole), bias), shift)
    return builder.fmul(series, builder.bitcast(bits, vector))


def _softmax(lanes: int) -> Any:
    """Returns the compiled softmax of `lanes` columns of a block, from a given one on."""
    vector, zeros = ir.VectorType(FLOAT, lanes), _all_lanes(lanes, 0)

    @intrinsic
    def weigh(typing: Any, block: Any, column: Any) -> Any:
        del typing, column

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            del signature
            b = Block(*cgutils.unpack_tuple(builder, args[0]))
            offset = builder.mul(args[1], WORD(4))

            def vector_at(start: Any, row: Any = None) -> Any:
                start = start if row is None else builder.add(start, builder.mul(b.row, row))
                return builder.inttoptr(builder.add(start, offset), vector.as_pointer())

            def load(place: Any) -> Any:
                return builder.load(place, align=4)

            before = load(vector_at(b.top))
            highest = cgutils.alloca_once_value(builder, before)
            unsound = cgutils.alloca_once_value(builder, zeros)
            with cgutils.for_range(builder, b.tokens) as loop:
                score, most = load(vector_at(b.scores, loop.index)), builder.load(highest)
                nothing = builder.fsub(score, score)  # 0, or NaN
                builder.store(builder.fadd(builder.load(unsound), nothing), unsound)
                larger = builder.fcmp_ordered(">", score, most)
                builder.store(builder.select(larger, score, most), highest)
            top = builder.load(highest)
            decay = _exponential(builder, builder.fsub(before, top), lanes)
            kept = builder.fmul(load(vector_at(b.total)), decay)
            total = cgutils.alloca_once_value(builder, builder.fadd(kept, builder.load(unsound)))
            with cgutils.for_range(builder, b.tokens) as loop:
                place = vector_at(b.scores, loop.index)
                score = load(place)
                weight = _exponential(builder, builder.fsub(score, top), lanes)
                # A column that has seen nothing yet has MASKED as its largest score.
                masked = builder.fcmp_ordered("==", score, _all_lanes(lanes, MASKED))
                weight = builder.select(masked, zeros, weight)
                builder.store(weight, place, align=4)
                builder.store(builder.fadd(builder.load(total), weight), total)
            builder.store(top, vector_at(b.top), align=4)
            builder.store(builder.load(total), vector_at(b.total), align=4)
            builder.store(decay, vector_at(b.decay), align=4)
            return context.get_dummy_value()

        return types.void(block, types.int64), generate

    return weigh


def softmax() -> Callable[[Block, int], None]:
    """Returns the compiled softmax of a block, given the block and its number of columns."""
    wide, narrow = _softmax(2 * LANES), _softmax(LANES)
    lanes = 2 * LANES

    @compiled
    def weigh(block: Block, columns: int) -> None:
        column = 0
        while columns - column >= lanes:
            wide(block, column)
            column += lanes
        if column < columns:
            narrow(block, column)

    return weigh
