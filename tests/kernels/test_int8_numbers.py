"""The numbers of an int8 cache: heads that cannot be divided by a scale, and small values."""

import jax.numpy as jnp
import numpy as np
import pytest

from emsjax.pallas_kernels.int8_cache import quantise
from emsjax.pallas_kernels.ragged_attention.api import ragged_attention
from tests.kernels.caches import make_int8_cache


def test_a_head_of_zeros_or_of_what_is_no_number_harms_no_other():
    """Their quotients would be NaN, which an int8 number cannot be."""
    heads = np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float32)
    expected, scales = map(np.array, quantise(jnp.asarray(heads)))
    assert np.abs(expected).max(axis=2).tolist() == [[127] * 5] * 2
    heads[0, 1], heads[0, 2], heads[0, 3, 4], heads[0, 4, 5] = 0, 1e-38, np.nan, -np.inf
    expected[0, 1:], scales[0, 1], scales[0, 3:] = 0, 0, np.nan
    values, found = map(np.array, quantise(jnp.asarray(heads)))
    scales[0, 2] = found[0, 2]  # so small that it may count as 0
    assert 0 <= found[0, 2] <= 1e-38
    np.testing.assert_array_equal(found, scales)
    np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_values_are_kept_whose_scales_are_small(dtype: str):
    """float16 would round most products of a weight and such a scale to zero."""
    tokens, scale = 64, 1e-6
    numbers = np.random.default_rng(0).integers(0, 128, (1, 128, 1, 128), np.int8)
    ones = np.ones((1, 128, 1), np.float32)
    cache = make_int8_cache(
        np.zeros_like(numbers), numbers, ones, scale * ones, (tokens,), layer=0, num_layers=1
    )
    out = ragged_attention(
        jnp.ones((1, 1, 128), dtype),
        cache,
        layer=jnp.int32(0),
        cu_q_lens=jnp.asarray([0, 1], jnp.int32),
        kv_lens=jnp.asarray([tokens], jnp.int32),
        num_kv_heads=1,
        max_q_len=1,
        scale=1.0,
        backend="reference",
    )
    expected = scale * numbers[0, :tokens, 0].mean(axis=0)
    np.testing.assert_allclose(np.asarray(out[0, 0], np.float32), expected, rtol=1e-2)
