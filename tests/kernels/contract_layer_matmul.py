"""The contract of `layer_matmul`: subclasses run it against one backend each."""

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from emsjax.pallas_kernels.layer_matmul.api import layer_matmul
from emsjax.pallas_kernels.quantised import Grouped, Quantised, Weights
from tests.kernels.contract_attention import FLOAT32_ERROR, ROUNDING

NUM_LAYERS, LAYER = 3, 1


@dataclass(frozen=True)
class Case:
    """Shape of one layer's weights, the dtype of rows, and what the weights are.

    They are int8, or 4 bits in groups of a size, with or without offsets.
    """

    num_out: int = 192
    num_in: int = 256
    dtype: str = "bfloat16"
    int8: bool = False
    group: int | None = None
    offsets: bool = False


CASES = {
    "small": Case(64, 64),
    "odd-tiles": Case(192, 576),
    "wide-tiles": Case(256, 128),
    "parts": Case(128, 2048),
    "float16": Case(dtype="float16"),
    "float32": Case(dtype="float32"),
    "int8": Case(int8=True),
    "int8-float32": Case(193, 2304, dtype="float32", int8=True),
}

# Products with 4-bit weights have kernels of their own.
GROUPED = {
    "groups": Case(group=128),
    "offsets": Case(192, 512, group=128, offsets=True),
    "small-groups": Case(256, 384, group=32, offsets=True),
    "wide-groups": Case(128, 512, group=256),
    "groups-float16": Case(128, 128, "float16", group=64),
    "groups-float32": Case(192, 2304, "float32", group=64, offsets=True),
}
ALL = CASES | GROUPED


@functools.cache
def numbers(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows [256, in] and weights [L, out, in], which are NaN in all layers but `LAYER`."""
    rng, dtype = np.random.default_rng(0), ml_dtypes.finfo(case.dtype).dtype
    x = rng.standard_normal((256, case.num_in)).astype(dtype)
    kernels = np.full((NUM_LAYERS, case.num_out, case.num_in), np.nan, dtype)
    kernels[LAYER] = rng.standard_normal((case.num_out, case.num_in)).astype(dtype)
    return x, kernels


@functools.cache
def int8(case: Case) -> Quantised:
    """Returns weights in int8 whose scales are NaN in all layers but `LAYER`."""
    rng = np.random.default_rng(1)
    shape = (NUM_LAYERS, case.num_out, case.num_in)
    values = rng.integers(-127, 128, shape).astype(np.int8)
    scale = np.full(shape[:2], np.nan, np.float32)
    scale[LAYER] = rng.uniform(0.005, 0.05, case.num_out)
    return Quantised(jnp.asarray(values), jnp.asarray(scale))


@functools.cache
def grouped(case: Case) -> Grouped:
    """Returns weights in 4 bits whose scales are NaN in all layers but `LAYER`."""
    rng = np.random.default_rng(2)
    assert case.group is not None
    values = rng.integers(-8, 8, (NUM_LAYERS, case.num_out, case.num_in))
    parts = np.full((2, NUM_LAYERS, case.num_in // case.group, case.num_out), np.nan, np.float32)
    parts[:, LAYER] = rng.uniform(0.01, 0.1, parts[:, LAYER].shape)
    scales, offsets = jnp.asarray(parts)
    return Grouped(jnp.asarray(values, jnp.int4), scales, offsets if case.offsets else None)


def weights_of(case: Case) -> Weights:
    """Returns the weights of all layers."""
    if case.group is not None:
        return grouped(case)
    return int8(case) if case.int8 else jnp.asarray(numbers(case)[1])


def exact(case: Case) -> np.ndarray:
    """Returns the weights of `LAYER` in float64."""
    if case.group is not None:
        held = grouped(case)
        values, *parts = (np.asarray(a[LAYER]).astype(np.float64) for a in jax.tree.leaves(held))
        scales, offsets = (np.repeat(a.T, case.group, axis=1) for a in (*parts, parts[0] * 0)[:2])
        return values * scales + offsets
    if not case.int8:
        return numbers(case)[1][LAYER].astype(np.float64)
    values, scale = (np.asarray(a, np.float64)[LAYER] for a in jax.tree.leaves(int8(case)))
    return values * scale[:, None]


class LayerMatmulContract:
    """Subclass as `TestX` and set `backend`."""

    backend: ClassVar[str]
    cases: ClassVar[tuple[str, ...]] = tuple(CASES)
    rounds_weights: ClassVar[bool] = False  # 4-bit weights, to the type of rows
    program: ClassVar[Any]

    def __init_subclass__(cls) -> None:
        """Creates the jitted call, which compiles once for each shape."""

        def call(x: jax.Array, kernels: Weights, layer: jax.Array) -> Any:
            return layer_matmul(x, kernels, layer=layer, backend=cls.backend)

        cls.program = staticmethod(jax.jit(call))

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "name" in metafunc.fixturenames:
            metafunc.parametrize("name", self.cases)

    def multiply(self, case: Case, x: np.ndarray) -> np.ndarray:
        # At the default precision, GPUs and TPUs round float32 operands before multiplying them.
        with jax.default_matmul_precision("highest" if case.dtype == "float32" else None):
            out = self.program(x, weights_of(case), jnp.asarray(LAYER, jnp.int32))
        assert out.dtype == x.dtype
        return np.asarray(out)

    @pytest.mark.parametrize("rows", [1, 8, 13, 64, 128, 133, 256])
    def test_equals_the_oracle(self, name, rows):
        case = ALL[name]
        x = numbers(case)[0][:rows]
        wide = (x.astype(np.float64), exact(case))
        expected, terms = wide[0] @ wide[1].T, np.abs(wide[0]) @ np.abs(wide[1]).T
        # A product of two 16-bit numbers is exact in float32. A sum of several hundred is not.
        allowed = FLOAT32_ERROR * terms + ROUNDING[case.dtype] * np.abs(expected)
        if self.rounds_weights:
            allowed += ROUNDING[case.dtype] * terms
        error = np.abs(self.multiply(case, x).astype(np.float64) - expected)
        assert error.shape == expected.shape
        assert (error <= allowed).all(), f"off by {error.max():.2e}"

    def test_a_row_is_the_same_next_to_any_rows(self, name):
        """A row keeps every bit when it moves to another index and NaN rows surround it."""
        case = ALL[name]
        x = numbers(case)[0]
        expected = self.multiply(case, x[:16])
        moved = np.roll(x[:16], 5, axis=0)
        moved[:5] = np.nan
        out = self.multiply(case, moved)
        np.testing.assert_array_equal(out[5:].view(np.uint8), expected[:11].view(np.uint8))


class SameForAnyNumber:
    """For backends whose sums do not depend on how many rows there are."""

    most_rows: ClassVar[int] = 256
    numbers_of_rows: ClassVar[tuple[int, ...]]
    multiply: Any

    def test_a_row_is_the_same_for_any_number_of_rows(self, name):
        """A row keeps every bit."""
        case = ALL[name]
        x = numbers(case)[0][: self.most_rows]
        whole = self.multiply(case, x)
        for rows in self.numbers_of_rows:
            part = self.multiply(case, x[:rows])
            np.testing.assert_array_equal(part.view(np.uint8), whole[:rows].view(np.uint8))
