"""The inner loops of the CPU kernels: any shape, and the same bits for any number of columns."""

import functools
import os
import platform
import subprocess
import sys

import ml_dtypes
import numba
import numpy as np
import pytest

from emsjax.pallas_kernels.ragged_attention.cpu_softmax import MASKED, Block, softmax
from emsjax.pallas_kernels.small_products import Product, product_of

WIDTHS = (8, 16, 24, 32, 56, 96)


@functools.cache
def multiplication(dtype):
    multiply = product_of(np.dtype(dtype))

    @numba.njit
    def call(left, left_row, left_term, right, out, rows, columns, terms, adds):
        row = 4 * columns
        matrices = Product(left, left_row, left_term, right, row, out, row, terms)
        multiply(matrices, rows, columns, adds)

    return call


def product(left, right, out=None, dtype="float32"):
    """Returns left @ right, or out + left @ right, by the kernels' loops."""
    (rows, terms), columns = left.shape, right.shape[1]
    result = np.full((rows, columns), np.nan, np.float32) if out is None else out.copy()
    call = multiplication(dtype)
    addresses = left.ctypes.data, *left.strides, right.ctypes.data, result.ctypes.data
    call(*addresses, rows, columns, terms, out is not None)
    return result


def draw(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("rows", [1, 7, 8, 19])
@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("transposed", [False, True])
def test_equals_numpy(rows, columns, transposed):
    left = draw(33, rows).T if transposed else draw(rows, 33)
    right, out = draw(33, columns), draw(rows, columns)
    np.testing.assert_allclose(product(left, right), left @ right, atol=1e-5)
    np.testing.assert_allclose(product(left, right, out), out + left @ right, atol=1e-5)


def test_bfloat16_is_widened():
    left, right = draw(9, 20).astype(ml_dtypes.bfloat16), draw(20, 16)
    out = product(left.view(np.uint16), right, dtype="uint16")
    np.testing.assert_allclose(out, left.astype(np.float32) @ right, atol=1e-5)


def test_no_terms_leave_what_is_added_to():
    out = draw(9, 16)
    np.testing.assert_array_equal(product(draw(9, 0), draw(0, 16), out), out)


def check_bits() -> None:
    """Checks that a column keeps every bit in matrices of any width, and a row of any height."""
    left, right = draw(19, 77), draw(77, max(WIDTHS))
    whole = product(left, right)
    for columns in WIDTHS:
        part = np.ascontiguousarray(right[:, :columns])
        np.testing.assert_array_equal(product(left, part), whole[:, :columns])
    for row in range(len(left)):
        np.testing.assert_array_equal(product(left[row : row + 1], right), whole[row : row + 1])


@functools.cache
def weighing():
    weigh = softmax()

    @numba.njit
    def call(scores, tokens, top, total, out, width, columns):
        weigh(Block(scores, 4 * columns, tokens, top, total, out, width), columns)

    return call


def weights_of(scores, top, total, out):
    """Returns what the softmax makes of its arguments."""
    scores, top, total, out = (x.copy() for x in (scores, top, total, out))
    addresses = (x.ctypes.data for x in (top, total, out))
    weighing()(scores.ctypes.data, len(scores), *addresses, len(out), scores.shape[1])
    return scores, top, total, out


def start(columns):
    """Returns the state before the first block, and what must become of it as it is 0."""
    return (
        np.full(columns, MASKED),
        np.zeros(columns, np.float32),
        np.zeros((5, columns), "float32"),
    )


@pytest.mark.parametrize("columns", WIDTHS)
def test_the_softmax_of_two_blocks(columns):
    scores = 4 * draw(40, columns)
    weights, *state = weights_of(scores[:32], *start(columns))
    np.testing.assert_allclose(weights, np.exp(scores[:32] - scores[:32].max(0)), atol=3e-7)
    state[2] += 1
    before = state[0]
    last, top, total, out = weights_of(scores[32:], *state)
    np.testing.assert_array_equal(top, scores.max(0))
    np.testing.assert_allclose(last, np.exp(scores[32:] - top), atol=3e-7)
    np.testing.assert_allclose(total, np.exp(scores - top).sum(0), rtol=1e-6)
    np.testing.assert_allclose(out, np.broadcast_to(np.exp(before - top), out.shape), rtol=1e-6)


def test_masked_tokens_weigh_nothing():
    scores = draw(6, 8)
    scores[2:4], scores[:, 5] = MASKED, MASKED
    weights, top, total, out = weights_of(scores, *start(8))
    assert not weights[2:4].any()
    assert not weights[:, 5].any()
    assert (top[5], total[5], out[0, 5]) == (MASKED, 0, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_makes_its_column_nan(bad):
    scores = draw(6, 24)
    scores[3, 17] = bad
    total = weights_of(scores, *start(24))[2]
    np.testing.assert_array_equal(np.isnan(total), np.arange(24) == 17)


def check_sums() -> None:
    """Checks that masked tokens and other columns do not change a bit of a column's sum."""
    scores = draw(32, 56)
    for seen in (1, 3, 8, 13, 31):
        short = weights_of(scores[:seen], *start(56))
        long = scores.copy()
        long[seen:] = MASKED
        np.testing.assert_array_equal(weights_of(long, *start(56))[2], short[2])
        narrow = np.ascontiguousarray(scores[:seen, 48:])
        np.testing.assert_array_equal(weights_of(narrow, *start(8))[2], short[2][48:])


def test_bits_depend_on_no_other_column():
    check_bits()
    check_sums()


@pytest.mark.parametrize("name", ["generic", *["haswell"] * (platform.machine() == "x86_64")])
def test_nor_on_other_processors(name):
    """Numba can be told to compile for another processor only when it starts."""
    command = "from tests.kernels.test_small_products import *; check_bits(); check_sums()"
    other = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": "+avx2,+fma" * (name == "haswell")}
    subprocess.run([sys.executable, "-c", command], env=os.environ | other, check=True)
