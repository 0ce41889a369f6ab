"""`residual_norm` in XLA and as kernels, which are interpreted without their device."""

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emsjax.pallas_kernels.backends import compiling_for, noting_backends
from emsjax.pallas_kernels.norms import PartsNorm
from emsjax.pallas_kernels.residual_norm.api import residual_norm

LAYERS, LAYER, EPS = 3, 1, 1e-3


class Case(NamedTuple):
    """Sizes and types of one call, and the lag of the parts' norm; None if they have none."""

    width: int
    parts: int
    rows: int = 5
    dtype: str = "bfloat16"
    of_parts: str = "float32"
    of_scales: str = "float32"
    offset: bool = False
    lag: int | None = None


Given = tuple[jax.Array, jax.Array, jax.Array, PartsNorm | None]
CASES = {
    "one": Case(width=128, parts=1),
    "odd-width": Case(width=576, parts=4, of_scales="bfloat16"),
    "offset": Case(width=320, parts=2, offset=True),
    "float16": Case(width=64, parts=3, dtype="float16", of_scales="float16"),
    "summed-already": Case(width=256, parts=1, of_parts="bfloat16"),
    "normed": Case(width=576, parts=2, of_scales="bfloat16", lag=0),
    "normed-before": Case(width=256, parts=1, offset=True, lag=1),
}


def numbers(case: Case) -> Given:
    """Returns arguments, with NaN in what must not be read."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(case.rows, case.width))
    parts = rng.normal(size=(case.parts, case.rows + 3, case.width))
    parts[:, case.rows :] = np.nan

    def scales_of(layer: int) -> jax.Array:
        scales = np.full((LAYERS, case.width), np.nan)
        scales[layer] = rng.normal(size=case.width)
        return jnp.asarray(scales, case.of_scales)

    given = jnp.asarray(x, case.dtype), jnp.asarray(parts, case.of_parts), scales_of(LAYER)
    if case.lag is None:
        return *given, None
    return *given, PartsNorm(scales_of(LAYER - case.lag), case.lag)


def oracle(
    case: Case, x: jax.Array, parts: jax.Array, scales: jax.Array, of_parts: PartsNorm | None
) -> tuple:
    """Returns both results in float64, each norm of numbers as x's type holds them."""

    def normed(numbers: np.ndarray, scales: jax.Array, layer: int) -> np.ndarray:
        rounded = np.asarray(jnp.asarray(numbers, x.dtype), np.float64)
        factor = (1 if case.offset else 0) + np.asarray(scales, np.float64)[layer]
        return rounded / np.sqrt((rounded**2).mean(axis=1, keepdims=True) + EPS) * factor

    more = np.asarray(parts, np.float64)[:, : case.rows].sum(axis=0)
    if of_parts is not None:
        more = normed(more, of_parts.scales, LAYER - of_parts.lag)
    total = np.asarray(x, np.float64) + more
    return total, normed(total, scales, LAYER)


class ResidualNormContract:
    backend = ""
    cases: ClassVar[Mapping[str, Case]] = CASES
    # Rows that are computed alone and next to others.
    some = slice(2, 3)

    def run(
        self,
        case: Case,
        x: jax.Array,
        parts: jax.Array,
        scales: jax.Array,
        of_parts: PartsNorm | None,
    ) -> tuple:
        layer, options = jnp.int32(LAYER), {"eps": EPS, "offset": case.offset}
        options |= {"of_parts": of_parts, "backend": self.backend}
        return residual_norm(x, parts, scales, layer=layer, **options)

    @pytest.mark.parametrize("name", CASES)
    def test_equals_the_oracle(self, name: str):
        case = self.cases[name]
        given = numbers(case)
        results = self.run(case, *given)
        # Roundings to 8 or 11 bits: of the terms' sum, of the total and of its norm, whose factor
        # is rounded, too; and the same of the terms' norm.
        roundings = 3 if case.lag is None else 5
        tolerance = roundings * float(jnp.finfo(case.dtype).eps)
        for result, wanted in zip(results, oracle(case, *given), strict=True):
            assert result.dtype == case.dtype
            np.testing.assert_allclose(
                np.asarray(result, np.float64), wanted, rtol=tolerance, atol=2 * tolerance
            )

    @pytest.mark.parametrize("name", ["odd-width", "normed"])
    def test_a_row_is_the_same_whatever_the_others_are(self, name: str):
        case, some = self.cases[name], self.some
        x, parts, *norms = numbers(case)
        whole = self.run(case, x, parts, *norms)
        alone = self.run(case, x[some], parts[:, some], *norms)
        for few, every in zip(alone, whole, strict=True):
            np.testing.assert_array_equal(few.view(np.uint16), every[some].view(np.uint16))

    @pytest.mark.parametrize("name", CASES)
    def test_rounds_like_the_reference(self, name: str):
        """The sums have the same bits: the same terms are added in the same order.

        Norms do not, as each platform adds squares in an order of its own.
        """
        case = self.cases[name]._replace(lag=None)
        given = numbers(case)
        total, reference = (run(case, *given)[0] for run in (self.run, TestReference().run))
        bits = np.uint16 if total.dtype.itemsize == 2 else np.uint32
        np.testing.assert_array_equal(total.view(bits), reference.view(bits))


class TestReference(ResidualNormContract):
    backend = "reference"


@pytest.mark.usefixtures("interpreting_triton")
class TestTriton(ResidualNormContract):
    backend = "gpu-triton"


@pytest.mark.usefixtures("interpreting_tpu")
class TestTPU(ResidualNormContract):
    """Eight rows at a time, and float32 instead of float16."""

    backend = "tpu"
    cases: ClassVar = {name: case._replace(rows=16) for name, case in CASES.items()} | {
        "float16": Case(width=64, parts=3, rows=8, dtype="float32")
    }
    some = slice(8, 16)


@pytest.mark.parametrize(
    ("platform", "capability", "dtype", "width", "chosen"),
    [
        ("gpu", "9.0", "bfloat16", 4096, "gpu-triton"),
        ("gpu", "8.0", "float16", 576, "gpu-triton"),
        ("gpu", "7.5", "float16", 576, "reference"),
        ("gpu", "9.0", "float32", 576, "reference"),
        ("gpu", "9.0", "bfloat16", 16448, "reference"),
        ("tpu", None, "bfloat16", 4096, "tpu"),
        ("tpu", None, "float32", 576, "tpu"),
        ("tpu", None, "float16", 576, "reference"),
        ("tpu", None, "bfloat16", 131072, "reference"),
    ],
)
def test_each_device_has_its_backend(
    platform: str, capability: str | None, dtype: str, width: int, chosen: str
):
    given = (jnp.zeros(shape, dtype) for shape in ((8, width), (1, 8, width), (2, width)))
    with compiling_for(platform, capability), noting_backends() as picked:
        jax.eval_shape(lambda *a: residual_norm(*a, layer=jnp.int32(0), eps=EPS), *given)
    assert picked == {"residual_norm": chosen}


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((8,), (1, 8, 64), (2, 64)), "^x has shape"),
        (((8, 64), (1, 8, 32), (2, 64)), "^parts has shape"),
        (((8, 64), (1, 7, 64), (2, 64)), "^parts has 7 rows"),
        (((8, 64), (1, 8, 64), (64,)), "^scales has shape"),
    ],
)
def test_errors_name_the_wrong_argument(shapes: tuple, message: str):
    with pytest.raises(ValueError, match=message):
        residual_norm(*map(jnp.zeros, shapes), layer=jnp.int32(0), eps=EPS)
