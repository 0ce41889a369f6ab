"""The contract of `expert_matmul`: subclasses run it against one backend each."""

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from emsjax.pallas_kernels.expert_matmul.api import expert_matmul
from emsjax.pallas_kernels.expert_matmul.tiles import tiles_of, to_tiles
from emsjax.pallas_kernels.quantised import Grouped, Quantised, Weights
from tests.kernels.contract_attention import FLOAT32_ERROR, ROUNDING

NUM_LAYERS, LAYER = 2, 1
ROWS = 40  # of which the last are unused
USED = 33


@dataclass(frozen=True)
class Case:
    """Shape of one layer's experts, how many a row chooses, and the types."""

    num_experts: int = 5
    num_chosen: int = 2
    num_out: int = 192
    num_in: int = 256
    dtype: str = "bfloat16"
    int8: bool = False
    group: int | None = None  # inputs of a group of weights in 4 bits
    offsets: bool = False


CASES = {
    "bfloat16": Case(),
    "float32": Case(num_out=72, num_in=40, dtype="float32"),
    "many-experts": Case(num_experts=64, num_chosen=3, num_out=64, num_in=128),
    "one-expert": Case(num_experts=1, num_chosen=1, num_in=128),
    "int8": Case(int8=True),
    "groups": Case(group=128),
    "offsets": Case(group=32, offsets=True),
}


@functools.cache
def rows_and_choices(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows [T, in], NaN in unused ones, and the experts of each, never the last of many."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, case.num_in))
    x[USED:] = np.nan
    among = max(case.num_experts - 1, 1)
    chosen = [rng.permutation(among)[: case.num_chosen] for _ in range(ROWS)]
    return x.astype(ml_dtypes.finfo(case.dtype).dtype), np.asarray(chosen, np.int32)


@functools.cache
def weights(case: Case) -> tuple[Weights, np.ndarray]:
    """Returns the weights of all layers, and those of `LAYER` in float64.

    They are NaN in the other layers and in the expert that no row chooses.
    """
    rng = np.random.default_rng(1)
    shape = (NUM_LAYERS, case.num_experts, case.num_out, case.num_in)
    unread = np.ones(shape[:2], bool)
    unread[LAYER, : max(case.num_experts - 1, 1)] = False
    if case.int8:
        values = rng.integers(-127, 128, shape).astype(np.int8)
        scale = rng.uniform(0.005, 0.05, shape[:3]).astype(np.float32)
        scale[unread] = np.nan
        exact = values[LAYER].astype(np.float64) * scale[LAYER][..., None]
        return Quantised(jnp.asarray(values), jnp.asarray(scale)), exact
    if case.group is not None:
        return in_groups(case, rng, shape, unread)
    kernels = rng.standard_normal(shape).astype(ml_dtypes.finfo(case.dtype).dtype)
    kernels[unread] = np.nan
    return jnp.asarray(kernels), kernels[LAYER].astype(np.float64)


def in_groups(
    case: Case, rng: np.random.Generator, shape: tuple[int, ...], unread: np.ndarray
) -> tuple[Grouped, np.ndarray]:
    """Returns weights in 4 bits with scales per group, and those of `LAYER` in float64."""
    assert case.group is not None
    *stack, num_out, num_in = shape
    values = rng.integers(-8, 8, shape).astype(np.int8)
    parts = [rng.uniform(0.1, 0.4, (*stack, num_in // case.group, num_out)) for _ in range(2)]
    scales, offsets = (part.astype(np.float32) for part in parts)
    scales[unread] = offsets[unread] = np.nan
    wide, added = (
        np.repeat(part[LAYER].astype(np.float64).swapaxes(-1, -2), case.group, axis=-1)
        for part in (scales, offsets)
    )
    exact = values[LAYER] * wide + (added if case.offsets else 0)
    held = jnp.asarray(offsets) if case.offsets else None
    return Grouped(jnp.asarray(values, jnp.int4), jnp.asarray(scales), held), exact


class ExpertMatmulContract:
    """Subclass as `TestX` and set `backend`."""

    backend: ClassVar[str]
    cases: ClassVar[tuple[str, ...]] = tuple(CASES)
    program: ClassVar[Any]

    def __init_subclass__(cls) -> None:
        """Creates the jitted call, which compiles once for each shape."""

        def call(x: jax.Array, chosen: jax.Array, used: jax.Array, kernels: Weights) -> jax.Array:
            """Returns the product of each row with each expert that it chose, [T, C, out]."""
            tiles = tiles_of(chosen, used, kernels.shape[1])
            layer = jnp.asarray(LAYER, jnp.int32)
            y = expert_matmul(
                to_tiles(x, tiles), kernels, layer=layer, tiles=tiles, backend=cls.backend
            )
            flat = y.reshape(-1, y.shape[-1])
            return jnp.take(flat, tiles.places, axis=0, mode="clip")

        cls.program = staticmethod(jax.jit(call))

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "name" in metafunc.fixturenames:
            metafunc.parametrize("name", self.cases)

    def multiply(self, case: Case, x: np.ndarray, chosen: np.ndarray, used: int) -> np.ndarray:
        with jax.default_matmul_precision("highest" if case.dtype == "float32" else None):
            mask = np.arange(len(x)) < used
            out = self.program(x, chosen, mask, weights(case)[0])
        assert out.dtype == x.dtype
        return np.asarray(out)[:used]

    @pytest.mark.parametrize("used", [0, 1, USED])
    def test_equals_the_oracle(self, name, used):
        """NaN in unused rows, in other layers and in experts that nobody chose reaches nothing."""
        case = CASES[name]
        x, chosen = rows_and_choices(case)
        out = self.multiply(case, x, chosen, used).astype(np.float64)
        wide, exact = x[:used].astype(np.float64), weights(case)[1][chosen[:used]]
        expected = np.einsum("td,tcod->tco", wide, exact)
        terms = np.einsum("td,tcod->tco", np.abs(wide), np.abs(exact))
        allowed = FLOAT32_ERROR * terms + ROUNDING[case.dtype] * np.abs(expected)
        assert (np.abs(out - expected) <= allowed).all()

    def test_a_row_is_the_same_next_to_any_rows(self, name):
        """A row keeps every bit when it moves and others take its neighbours' places."""
        case = CASES[name]
        x, chosen = rows_and_choices(case)
        expected = self.multiply(case, x, chosen, USED)[:9]
        moved, moved_choices = (np.roll(each, 7, axis=0) for each in (x, chosen))
        moved_choices[16:] = moved_choices[16]
        out = self.multiply(case, moved, moved_choices, 16)[7:]
        np.testing.assert_array_equal(out.view(np.uint8), expected.view(np.uint8))
