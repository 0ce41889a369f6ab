"""Products on CPU keep every bit of a row on any processor."""

import os
import platform
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from emsjax.pallas_kernels.layer_matmul.api import layer_matmul


def check_rows(num_in: int) -> None:
    """Checks that a row is right, and the same next to any number of rows."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((100, num_in)).astype(np.float32)
    for dtype in ("float32", "bfloat16", "int8"):
        weights = jnp.asarray(9 * rng.standard_normal((1, 21, num_in)), jnp.dtype(dtype))

        def multiply(rows: np.ndarray, weights=weights) -> np.ndarray:
            out = layer_matmul(jnp.asarray(rows), weights, layer=0, backend="cpu")
            return np.asarray(out)

        whole = multiply(x)
        exact = x.astype(np.float64) @ np.asarray(weights[0]).astype(np.float64).T
        np.testing.assert_allclose(whole, exact, rtol=1e-4, atol=1e-3)
        for count in (1, 2, 3, 4, 5, 7, 24, 26, 97):
            np.testing.assert_array_equal(multiply(x[:count]), whole[:count])


def check_widths() -> None:
    """Inputs in one part and in two, each of whole vectors and with a rest."""
    for num_in in (800, 801, 2112, 2101):
        check_rows(num_in)


def test_a_row_depends_on_no_other() -> None:
    check_widths()


@pytest.mark.parametrize("name", ["generic", *["haswell"] * (platform.machine() == "x86_64")])
def test_a_row_depends_on_no_other_on_another_processor(name: str) -> None:
    """Numba can be told to compile for another processor only when it starts."""
    command = "from tests.kernels.test_cpu_dots import check_widths; check_widths()"
    other = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": "+avx2,+fma" * (name == "haswell")}
    subprocess.run([sys.executable, "-c", command], env=os.environ | other, check=True)
