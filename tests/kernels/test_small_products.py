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

from emsjax.pallas_kernels.cpu_ahead import Ahead
from emsjax.pallas_kernels.ragged_attention.cpu_softmax import MASKED, Block, softmax
from emsjax.pallas_kernels.ragged_attention.cpu_values import Values, add_values_of
from emsjax.pallas_kernels.small_products import Product, product_of

WIDTHS = (8, 16, 24, 32, 56, 96)


@functools.cache
def multiplication(dtype):
    multiply = product_of(np.dtype(dtype))

    @numba.njit
    def call(left, left_row, left_term, right, out, rows, columns, terms):
        row = 4 * columns
        ahead = Ahead(right, 4, row, 0, 4, 1)
        matrices = Product(left, left_row, left_term, right, row, out, row, terms, ahead)
        multiply(matrices, rows, columns)

    return call


def product(left, right, dtype="float32"):
    """Returns left @ right by the kernels' loops."""
    (rows, terms), columns = left.shape, right.shape[1]
    result = np.full((rows, columns), np.nan, np.float32)
    addresses = left.ctypes.data, *left.strides, right.ctypes.data, result.ctypes.data
    multiplication(dtype)(*addresses, rows, columns, terms)
    return result


def draw(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("rows", [1, 7, 8, 19])
@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("transposed", [False, True])
def test_equals_numpy(rows, columns, transposed):
    left = draw(33, rows).T if transposed else draw(rows, 33)
    right = draw(33, columns)
    np.testing.assert_allclose(product(left, right), left @ right, atol=1e-5)


def test_bfloat16_is_widened():
    left, right = draw(9, 20).astype(ml_dtypes.bfloat16), draw(20, 16)
    out = product(left.view(np.uint16), right, dtype="uint16")
    np.testing.assert_allclose(out, left.astype(np.float32) @ right, atol=1e-5)


def test_no_terms_add_up_to_nothing():
    assert not product(draw(9, 0), draw(0, 16)).any()


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
    def call(scores, tokens, top, total, decay, columns):
        weigh(Block(scores, 4 * columns, tokens, top, total, decay), columns)

    return call


def weights_of(scores, top, total):
    """Returns what the softmax makes of its arguments, and the factors on what came before."""
    scores, top, total = (x.copy() for x in (scores, top, total))
    decay = np.full_like(top, np.nan)
    addresses = (x.ctypes.data for x in (top, total, decay))
    weighing()(scores.ctypes.data, len(scores), *addresses, scores.shape[1])
    return scores, top, total, decay


def start(columns):
    """Returns the state before the first block."""
    return np.full(columns, MASKED), np.zeros(columns, np.float32)


@pytest.mark.parametrize("columns", WIDTHS)
def test_the_softmax_of_two_blocks(columns):
    scores = 4 * draw(40, columns)
    weights, before, total, decay = weights_of(scores[:32], *start(columns))
    np.testing.assert_allclose(weights, np.exp(scores[:32] - scores[:32].max(0)), atol=3e-7)
    assert not decay.any()
    last, top, total, decay = weights_of(scores[32:], before, total)
    np.testing.assert_array_equal(top, scores.max(0))
    np.testing.assert_allclose(last, np.exp(scores[32:] - top), atol=3e-7)
    np.testing.assert_allclose(total, np.exp(scores - top).sum(0), rtol=1e-6)
    np.testing.assert_allclose(decay, np.exp(before - top), rtol=1e-6)


def test_masked_tokens_weigh_nothing():
    scores = draw(6, 8)
    scores[2:4], scores[:, 5] = MASKED, MASKED
    weights, top, total, decay = weights_of(scores, *start(8))
    assert not weights[2:4].any()
    assert not weights[:, 5].any()
    assert (top[5], total[5], decay[5]) == (MASKED, 0, 1)


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


@functools.cache
def addition(dtype):
    add = add_values_of(np.dtype(dtype))

    @numba.njit
    def call(values, values_row, weights, decays, sums, tokens, width, columns):
        row, ahead = 4 * columns, Ahead(values, 4, values_row, 0, 4, 2)
        p = Values(values, values_row, weights, row, decays, sums, tokens, width, ahead)
        add(p, columns)

    return call


def added(values, weights, decays, sums, dtype="float32"):
    """Returns decays[:, None] * sums + weights.T @ values by the kernel's loops."""
    (tokens, width), columns = values.shape, weights.shape[1]
    sums = sums.copy()
    addresses = (x.ctypes.data for x in (weights, decays, sums))
    addition(dtype)(values.ctypes.data, values.strides[0], *addresses, tokens, width, columns)
    return sums


@pytest.mark.parametrize("width", [1, 8, 20, 64, 72, 136])
@pytest.mark.parametrize("columns", [1, 2, 3, 5, 6, 16])
def test_values_are_added_to_what_is_there(width, columns):
    # Every second head's values are another's.
    values, weights = draw(2 * 17, width).reshape(17, -1)[:, :width], draw(17, columns)
    decays, sums = draw(columns), draw(columns, width)
    expected = decays[:, None] * sums + weights.T @ values
    np.testing.assert_allclose(added(values, weights, decays, sums), expected, atol=1e-5)
    none = added(values[:0], weights[:0], decays, sums)
    np.testing.assert_array_equal(none, decays[:, None] * sums)


def test_values_of_bfloat16_are_widened():
    values, weights = draw(9, 72).astype(ml_dtypes.bfloat16), draw(9, 4)
    decays, sums = draw(4), draw(4, 72)
    out = added(values.view(np.uint16), weights, decays, sums, "uint16")
    expected = decays[:, None] * sums + weights.T @ values.astype(np.float32)
    np.testing.assert_allclose(out, expected, atol=1e-5)


def check_values() -> None:
    """Checks that the number of columns and blocks does not change a bit of a column's values."""
    values, weights, decays, sums = draw(32, 72), draw(32, 13), draw(13), draw(13, 72)
    whole = added(values, weights, decays, sums)
    for columns in (1, 3, 6, 8):
        few = added(values, weights[:, :columns].copy(), decays[:columns], sums[:columns])
        np.testing.assert_array_equal(few, whole[:columns])
    for cut in (0, 1, 16, 32):
        begun = added(values[:cut], weights[:cut], decays, sums)
        rest = added(values[cut:], weights[cut:], np.ones(13, np.float32), begun)
        np.testing.assert_array_equal(rest, whole)


def test_bits_depend_on_no_other_column():
    check_bits()
    check_sums()
    check_values()


@pytest.mark.parametrize("name", ["generic", *["haswell"] * (platform.machine() == "x86_64")])
def test_nor_on_other_processors(name):
    """Numba can be told to compile for another processor only when it starts."""
    command = (
        "from tests.kernels.test_small_products import *; check_bits(); check_sums(); "
        "check_values()"
    )
    other = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": "+avx2,+fma" * (name == "haswell")}
    subprocess.run([sys.executable, "-c", command], env=os.environ | other, check=True)
