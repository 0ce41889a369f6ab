"""Products on CPU keep every bit of a row on any processor."""

import os
import platform
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from emsjax.pallas_kernels.layer_matmul.api import layer_matmul


def check_rows() -> None:
    """Checks that a row is right, and the same next to any number of rows."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((26, 800)).astype(np.float32)
    for dtype in ("float32", "bfloat16", "int8"):
        weights = jnp.asarray(9 * rng.standard_normal((1, 21, 800)), jnp.dtype(dtype))

        def multiply(rows: np.ndarray, weights=weights) -> np.ndarray:
            out = layer_matmul(jnp.asarray(rows), weights, layer=0, backend="cpu")
            return np.asarray(out)

        whole = multiply(x)
        exact = x.astype(np.float64) @ np.asarray(weights[0]).astype(np.float64).T
        np.testing.assert_allclose(whole, exact, rtol=1e-4, atol=1e-3)
        for count in (1, 2, 3, 4, 5, 7, 24):
            np.testing.assert_array_equal(multiply(x[:count]), whole[:count])


@pytest.mark.parametrize("name", ["generic", *["haswell"] * (platform.machine() == "x86_64")])
def test_a_row_depends_on_no_other_on_any_processor(name: str) -> None:
    """Numba can be told to compile for another processor only when it starts."""
    command = "from tests.kernels.test_cpu_dots import check_rows; check_rows()"
    other = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": "+avx2,+fma" * (name == "haswell")}
    subprocess.run([sys.executable, "-c", command], env=os.environ | other, check=True)
