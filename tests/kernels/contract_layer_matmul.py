"""What every backend of the product with a layer's weights has to do."""

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from emsjax.pallas_kernels.layer_matmul.api import layer_matmul
from tests.kernels.contract_attention import FLOAT32_ERROR, ROUNDING

NUM_LAYERS, LAYER = 3, 1


@dataclass(frozen=True)
class Case:
    """Everything about a call that is static."""

    num_out: int = 192
    num_in: int = 256
    dtype: str = "bfloat16"


CASES = {
    "small": Case(64, 64),
    "odd-tiles": Case(192, 576),
    "wide-tiles": Case(256, 128),
    "parts": Case(128, 2048),
    "float16": Case(dtype="float16"),
    "float32": Case(dtype="float32"),
}


@functools.cache
def numbers(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Rows [256, in], and the weights of all layers, NaN but for one."""
    rng, dtype = np.random.default_rng(0), ml_dtypes.finfo(case.dtype).dtype
    x = rng.standard_normal((256, case.num_in)).astype(dtype)
    kernels = np.full((NUM_LAYERS, case.num_out, case.num_in), np.nan, dtype)
    kernels[LAYER] = rng.standard_normal((case.num_out, case.num_in)).astype(dtype)
    return x, kernels


class LayerMatmulContract:
    """Subclass as `TestX` and set `backend`."""

    backend: ClassVar[str]
    cases: ClassVar[tuple[str, ...]] = tuple(CASES)

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "name" in metafunc.fixturenames:
            metafunc.parametrize("name", self.cases)

    def multiply(self, case: Case, x: np.ndarray) -> np.ndarray:
        def call(x: jax.Array, kernels: jax.Array, layer: jax.Array) -> Any:
            return layer_matmul(x, kernels, layer=layer, backend=self.backend)

        # GPUs and TPUs would round float32 numbers before they multiply them.
        with jax.default_matmul_precision("highest" if case.dtype == "float32" else None):
            out = jax.jit(call)(x, jnp.asarray(numbers(case)[1]), jnp.asarray(LAYER, jnp.int32))
        assert out.dtype == x.dtype
        return np.asarray(out)

    @pytest.mark.parametrize("rows", [1, 8, 13, 64, 128, 133, 256])
    def test_equals_the_oracle(self, name, rows):
        case = CASES[name]
        x, weights = numbers(case)[0][:rows], numbers(case)[1][LAYER]
        wide = (x.astype(np.float64), weights.astype(np.float64))
        expected, terms = wide[0] @ wide[1].T, np.abs(wide[0]) @ np.abs(wide[1]).T
        # Products of 16-bit numbers are exact in float32, sums of some hundreds are not.
        allowed = FLOAT32_ERROR * terms + ROUNDING[case.dtype] * np.abs(expected)
        out = self.multiply(case, x).astype(np.float64)
        assert out.shape == expected.shape
        assert (np.abs(out - expected) <= allowed).all()

    def test_a_row_is_the_same_in_any_company(self, name):
        """Bit for bit: at another place, beside other rows, beside NaN."""
        case = CASES[name]
        x = numbers(case)[0]
        expected = self.multiply(case, x[:16])
        moved = np.roll(x[:16], 5, axis=0)
        moved[:5] = np.nan
        out = self.multiply(case, moved)
        np.testing.assert_array_equal(out[5:].view(np.uint8), expected[:11].view(np.uint8))
