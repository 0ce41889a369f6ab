"""`layer_matmul` with 4-bit weights in groups, in XLA and in the kernels, interpreted on a CPU."""

from dataclasses import replace
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emsjax.pallas_kernels import hopper, triton_products
from emsjax.pallas_kernels.backends import compiling_for, noting_backends
from emsjax.pallas_kernels.grouped_matmul.api import grouped_matmul
from emsjax.pallas_kernels.quantised import Grouped, floats
from tests.kernels.contract_layer_matmul import (
    GROUPED,
    LAYER,
    LayerMatmulContract,
    SameForAnyNumber,
    grouped,
    numbers,
)
from tests.kernels.interpreted_products import product_of_pairs
from tests.kernels.lowering import lower_for_hopper

NUMBERS = np.random.default_rng(0)


class TestReference(LayerMatmulContract):
    backend = "reference"
    cases: ClassVar = tuple(GROUPED)
    rounds_weights = True


class TestCpu(SameForAnyNumber, LayerMatmulContract):
    backend = "cpu"
    cases: ClassVar = tuple(name for name in GROUPED if name != "groups-float16")
    numbers_of_rows = (1, 2, 5, 8, 133)

    def test_weights_are_those_of_floats_bit_for_bit(self, name):
        """Rows with a single 1 pick them out of the sums."""
        weights = grouped(GROUPED[name])
        x = jnp.eye(weights.shape[-1], dtype=jnp.float32)
        out = self.program(x, weights, jnp.int32(LAYER))
        np.testing.assert_array_equal(out.T, floats(weights)[LAYER])


@pytest.mark.parametrize(("num_in", "group"), [(40, 10), (54, 18), (2100, 70)])
def test_a_cpu_multiplies_groups_of_any_even_size(num_in: int, group: int):
    """They may end within a vector, and on both sides of where the inputs are divided."""
    values = jnp.asarray(NUMBERS.integers(-8, 8, (1, 5, num_in)), jnp.int4)
    scales, offsets = NUMBERS.uniform(0.5, 1, (2, 1, num_in // group, 5)).astype(np.float32)
    weights = Grouped(values, jnp.asarray(scales), jnp.asarray(offsets))
    x = jnp.eye(num_in, dtype=jnp.float32)
    out = grouped_matmul(x, weights, layer=jnp.int32(0), backend="cpu")
    np.testing.assert_array_equal(out.T, floats(weights)[0])


class TestTpu(LayerMatmulContract):
    backend = "tpu"
    cases: ClassVar = tuple(name for name in GROUPED if name != "groups-float16")

    @pytest.fixture(autouse=True)
    def _interpreted(self, interpreting_tpu: list[str]) -> None:
        pass


class TestHopper(LayerMatmulContract):
    backend = "gpu"
    cases: ClassVar = ("groups", "offsets", "wide-groups", "groups-float16")

    @pytest.fixture(autouse=True)
    def _interpreted(self, interpreting_gpu: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        if jax.default_backend() != "gpu":
            monkeypatch.setattr(hopper, "product_transposed", product_of_pairs)
            # The interpreter knows no layouts of registers.
            monkeypatch.setattr(hopper, "widened", lambda source, dtype: source[...].astype(dtype))
            monkeypatch.setattr(
                hopper, "of_rows", lambda scales, shape: jnp.broadcast_to(scales[0][:, None], shape)
            )


class TestTriton(LayerMatmulContract):
    backend = "gpu-triton"
    cases: ClassVar = ("groups", "offsets", "small-groups", "wide-groups", "groups-float16")

    @pytest.fixture(autouse=True)
    def _interpreted(self, interpreting_triton: None, monkeypatch: pytest.MonkeyPatch) -> None:
        if jax.default_backend() != "gpu":
            monkeypatch.setattr(triton_products, "product_transposed", product_of_pairs)


def shapes(num_out: int, num_in: int, group: int, layers: int = 2) -> Grouped:
    groups = jax.ShapeDtypeStruct((layers, num_in // group, num_out), jnp.float32)
    return Grouped(jax.ShapeDtypeStruct((layers, num_out, num_in), jnp.int4), groups)


@pytest.mark.parametrize("rows", [8, 192])
@pytest.mark.parametrize("group", [64, 128])
def test_lowers_for_hopper(group: int, rows: int):
    def call(x: jax.Array, kernels: Grouped, layer: jax.Array) -> jax.Array:
        return grouped_matmul(x, kernels, layer=layer, backend="gpu")

    x = jax.ShapeDtypeStruct((rows, 4096), jnp.bfloat16)
    layer = jax.ShapeDtypeStruct((), jnp.int32)
    lower_for_hopper(call, x, shapes(6144, 4096, group), layer)


@pytest.mark.parametrize(
    ("platform", "capability", "rows", "group", "chosen"),
    [
        ("tpu", None, 2048, 128, "tpu"),
        ("tpu", None, 64, 32, "tpu"),
        ("tpu", None, 64, 4096, "tpu"),
        ("tpu", None, 64, 48, "reference"),
        ("gpu", "9.0", 64, 128, "gpu"),
        ("gpu", "9.0", 64, 32, "gpu-triton"),
        ("gpu", "8.0", 64, 32, "gpu-triton"),
        ("gpu", "8.0", 512, 128, "reference"),
        ("gpu", "7.5", 8, 128, "reference"),
    ],
)
def test_each_device_has_its_kernel(
    platform: str, capability: str | None, rows: int, group: int, chosen: str
):
    num_in = 4096 if 4096 % group == 0 else 64 * group
    x, layer = jax.ShapeDtypeStruct((rows, num_in), jnp.bfloat16), jnp.zeros((), jnp.int32)
    with compiling_for(platform, capability), noting_backends() as picked:
        jax.eval_shape(lambda *a: grouped_matmul(*a, layer=layer), x, shapes(6144, num_in, group))
    assert picked == {"grouped_matmul": chosen}


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_inputs_in_another_order(backend: str):
    """Each layer has its own; what is in the columns' places would give another product."""
    case = GROUPED["offsets"]
    x, layer, rng = jnp.asarray(numbers(case)[0][:5], jnp.float32), jnp.int32(LAYER), NUMBERS
    orders = np.stack([rng.permutation(case.num_in) for _ in range(len(grouped(case).values))])
    kernels = replace(grouped(case), order=jnp.asarray(orders, jnp.int32))
    # Column c of the weights multiplies input orders[c], so the columns' inputs are these.
    moved = x[:, orders[LAYER]]
    expected = grouped_matmul(moved, grouped(case), layer=layer, backend=backend)
    np.testing.assert_array_equal(
        grouped_matmul(x, kernels, layer=layer, backend=backend), expected
    )
    wide = np.asarray(floats(kernels))[LAYER]
    np.testing.assert_allclose(np.asarray(x) @ wide.T, expected, rtol=1e-4, atol=1e-3)


def test_derivatives_by_rows():
    """Training differentiates by rows."""
    case = GROUPED["offsets"]
    x, layer = jnp.asarray(numbers(case)[0][:5], jnp.float32), jnp.int32(LAYER)
    ours, xla = (
        jax.grad(lambda x, b=b: grouped_matmul(x, grouped(case), layer=layer, backend=b).sum())(x)
        for b in ("cpu", "reference")
    )
    np.testing.assert_allclose(ours, xla, rtol=1e-4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"values": jnp.zeros((2, 64, 128), jnp.int8)}, r"^kernels\.values"),
        ({"scales": jnp.zeros((2, 3, 64))}, r"^kernels\.scales has 3 groups"),
        ({"offsets": jnp.zeros((2, 1, 64))}, r"^kernels\.offsets has 1 groups"),
        ({"order": jnp.zeros((2, 64), jnp.int32)}, r"^kernels\.order"),
    ],
)
def test_errors_name_the_wrong_argument(changed: dict, message: str):
    sound = {"values": jnp.zeros((2, 64, 128), jnp.int4), "scales": jnp.zeros((2, 2, 64))}
    with pytest.raises(ValueError, match=message):
        grouped_matmul(jnp.zeros((8, 128)), Grouped(**(sound | changed)), layer=jnp.int32(0))
