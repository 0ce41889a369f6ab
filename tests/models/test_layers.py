"""Properties of the layers besides parity with transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emsjax.pallas_kernels.products import matmul


@pytest.mark.parametrize("rows", [7, 8, 9, 15, 16, 20])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_rows_product_depends_on_neither_its_place_nor_the_other_rows(rows: int, dtype: str):
    # `exact` and refilled slots rely on this. The row counts have various remainders by 6 and by 8.
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
