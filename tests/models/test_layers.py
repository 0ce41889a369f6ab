"""Properties of the layers besides parity with transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emsjax.pallas_kernels.products import matmul


@pytest.mark.parametrize("rows", [7, 8, 9, 15, 16, 20])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_of_a_product_is_independent_of_the_others(rows: int, dtype: str):
    # `exact` and refilled slots rely on this. Row counts have various remainders modulo 6 and 8.
    rng = np.random.default_rng(0)
    kernel = jnp.asarray(rng.standard_normal((192, 576)), dtype)
    row = jnp.asarray(rng.standard_normal((1, 576)), dtype)
    others = jnp.asarray(rng.standard_normal((rows, 576)), dtype)
    product = jax.jit(matmul)

    same = product(jnp.tile(row, (rows, 1)), kernel)
    for place in range(rows):
        mixed = product(others.at[place].set(row[0]), kernel)
        np.testing.assert_array_equal(
            np.asarray(mixed[place], np.float32), np.asarray(same[0], np.float32)
        )
