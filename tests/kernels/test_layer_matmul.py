"""`layer_matmul` in XLA and on a Hopper GPU, which is interpreted if there is none."""

import re
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from emsjax.engine.packing import PackedBatch
from emsjax.loading.build import shape_of_model
from emsjax.loading.named import named_config
from emsjax.pallas_kernels import hopper, triton_products
from emsjax.pallas_kernels.backends import compiling_for, noting_backends
from emsjax.pallas_kernels.hopper_products import ENOUGH_BLOCKS, blocks_for
from emsjax.pallas_kernels.layer_matmul.api import layer_matmul
from tests.kernels.contract_attention import FLOAT32_ERROR
from tests.kernels.contract_layer_matmul import (
    CASES,
    LAYER,
    LayerMatmulContract,
    SameForAnyNumber,
    int8,
    numbers,
)
from tests.kernels.interpreted_products import product_of_pairs
from tests.kernels.lowering import lower_for_hopper

SHAPES = ("smollm2-135m", "opt-125m", "opt-6.7b", "llama-3-8b")


class TestReference(LayerMatmulContract):
    backend = "reference"


class TestCpu(SameForAnyNumber, LayerMatmulContract):
    backend = "cpu"
    cases: ClassVar = tuple(name for name in CASES if name != "float16")
    numbers_of_rows = (1, 2, 5, 8, 13, 24, 25, 32, 133)

    def test_may_be_mapped(self):
        """`vmap` over rows or layers computes what single calls do."""
        case = CASES["float32"]
        x, kernels = numbers(case)[0][:10].reshape(2, 5, -1), jnp.asarray(numbers(case)[1][LAYER:])
        layers = jnp.zeros(2, jnp.int32)

        def multiply(x: jax.Array, layer: jax.Array) -> jax.Array:
            return layer_matmul(x, kernels, layer=layer, backend="cpu")

        single = [multiply(each, layers[0]) for each in x]
        np.testing.assert_array_equal(jax.vmap(multiply)(x, layers), single)

    def test_derivatives(self):
        """Training differentiates by rows and by weights."""
        case = CASES["float32"]
        x, kernels = jnp.asarray(numbers(case)[0][:5]), jnp.asarray(numbers(case)[1][LAYER:])
        wanted = jnp.asarray(numbers(case)[0][5:10, : case.num_out])

        def loss(x: jax.Array, kernels: jax.Array, backend: str) -> jax.Array:
            out = layer_matmul(x, kernels, layer=jnp.int32(0), backend=backend)
            return ((out - wanted) ** 2).sum()

        kernels = kernels[:1]
        for argument in (0, 1):
            ours, xla = (
                jax.grad(loss, argnums=argument)(x, kernels, backend)
                for backend in ("cpu", "reference")
            )
            np.testing.assert_allclose(ours, xla, rtol=1e-4, atol=1e-2)

    def test_derivatives_by_rows_of_int8_weights(self):
        case = CASES["int8-float32"]
        x, layer = jnp.asarray(numbers(case)[0][:5]), jnp.int32(LAYER)
        ours, xla = (
            jax.grad(lambda x, b=b: layer_matmul(x, int8(case), layer=layer, backend=b).sum())(x)
            for b in ("cpu", "reference")
        )
        np.testing.assert_allclose(ours, xla, rtol=1e-4)


@pytest.mark.parametrize("rows", [1, 9, 30])
@pytest.mark.parametrize("shape", [(1, 16), (13, 40), (34, 7), (31, 1600)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_cpu_multiplies_weights_of_any_shape(dtype: str, shape: tuple[int, int], rows: int):
    """Also those that do not fill vectors, next to other layers' NaN."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, shape[1])).astype(np.float32)
    weights = (20 * rng.standard_normal(shape)).astype(dtype)
    stack = np.full((3, *shape), 99 if dtype == "int8" else np.nan, dtype)
    stack[LAYER] = weights
    out = layer_matmul(x, jnp.asarray(stack), layer=LAYER, dtype=jnp.float32, backend="cpu")
    exact = np.float64(x), weights.astype(np.float64)
    allowed = FLOAT32_ERROR * (np.abs(exact[0]) @ np.abs(exact[1]).T)
    assert (np.abs(out - exact[0] @ exact[1].T) <= allowed).all()


# XLA multiplies the others on GPUs.
FOR_GPUS = tuple(name for name, case in CASES.items() if case.dtype != "float32")


class TestHopper(SameForAnyNumber, LayerMatmulContract):
    """Interpreted, a row keeps every bit if the kernel divides its sums alike."""

    backend = "gpu"
    cases: ClassVar = FOR_GPUS
    most_rows, numbers_of_rows = 192, (1, 8, 32, 128)

    @pytest.fixture(autouse=True)
    def _interpreted(self, interpreting_gpu: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        if jax.default_backend() != "gpu":
            # Tensor cores sum alike for any number of rows. XLA's products on a CPU do not.
            monkeypatch.setattr(hopper, "product_transposed", product_of_pairs)
            # The interpreter knows no layouts of registers.
            monkeypatch.setattr(hopper, "widened", lambda source, dtype: source[...].astype(dtype))


class TestTriton(LayerMatmulContract):
    backend = "gpu-triton"
    cases: ClassVar = FOR_GPUS

    @pytest.fixture(autouse=True)
    def _interpreted(self, interpreting_triton: None, monkeypatch: pytest.MonkeyPatch) -> None:
        if jax.default_backend() != "gpu":
            # XLA's products on a CPU depend on the number of rows.
            monkeypatch.setattr(triton_products, "product_transposed", product_of_pairs)


@pytest.mark.parametrize(
    ("name", "rows"), [("odd-tiles", 1), ("odd-tiles", 8), ("odd-tiles", 13), ("int8", 13)]
)
def test_sums_equal_the_oracle_for_few_rows(name: str, rows: int):
    case = CASES[name]
    x = numbers(case)[0][:rows]
    kernels = int8(case) if case.int8 else jnp.asarray(numbers(case)[1])
    sums, oracle = (
        layer_matmul(
            jnp.asarray(x),
            kernels,
            layer=jnp.asarray(LAYER),
            dtype=jnp.float32,
            backend=backend,
        )
        for backend in ("gpu-sums", "reference")
    )
    np.testing.assert_allclose(sums, oracle, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("weights", ["float16", "int8"])
@pytest.mark.parametrize(
    ("capability", "rows", "chosen"),
    [
        ("9.0", 64, "gpu"),
        ("8.0", 64, "gpu-triton"),
        ("12.0", 8, "gpu-triton"),
        ("7.5", 16, "gpu-sums"),
        ("7.5", 17, "reference"),
        ("8.0", 512, "reference"),
    ],
)
def test_each_gpu_has_its_kernel(capability: str, rows: int, chosen: str, weights: str):
    x, kernels = jnp.zeros((rows, 64), jnp.float16), jnp.zeros((2, 64, 64), weights)
    with compiling_for("gpu", capability), noting_backends() as picked:
        jax.eval_shape(lambda: layer_matmul(x, kernels, layer=jnp.zeros((), jnp.int32)))
    assert picked == {"layer_matmul": chosen}


@pytest.mark.parametrize(
    ("layers", "dtype", "chosen"),
    [
        (127, "int8", "gpu-triton"),
        (129, "int8", "gpu-sums"),
        (300, "int8", "gpu-triton"),
        (129, "bfloat16", "gpu-triton"),
    ],
)
def test_triton_gets_no_stack_that_jax_would_count_wrongly(layers: int, dtype: str, chosen: str):
    x = jax.ShapeDtypeStruct((8, 4096), jnp.bfloat16)
    kernels = jax.ShapeDtypeStruct((layers, 4096, 4096), dtype)
    with compiling_for("gpu", "8.0"), noting_backends() as picked:
        jax.eval_shape(lambda *a: layer_matmul(*a, layer=jnp.zeros((), jnp.int32)), x, kernels)
    assert picked == {"layer_matmul": chosen}


def weights_of(model: str) -> list[tuple[int, int]]:
    """Returns [out, in] of each kernel in a layer of the named model."""
    config = named_config(model)
    heads = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    up = config.intermediate_size * (2 if config.gated else 1)
    width = config.hidden_size
    mixed = config.num_heads * config.head_dim
    return [(heads, width), (width, mixed), (up, width), (width, config.intermediate_size)]


@pytest.mark.parametrize("rows", [1, 8, 64, 128, 192])
@pytest.mark.parametrize(
    ("model", "dtype"), [*((model, "bfloat16") for model in SHAPES), ("smollm2-135m", "int8")]
)
def test_lowers_for_hopper(model: str, dtype: str, rows: int):
    def call(x: jax.Array, kernels: jax.Array, layer: jax.Array) -> jax.Array:
        return layer_matmul(x, kernels, layer=layer, backend="gpu")

    for num_out, num_in in weights_of(model):
        x = jax.ShapeDtypeStruct((rows, num_in), jnp.bfloat16)
        kernels = jax.ShapeDtypeStruct((2, num_out, num_in), dtype)
        layer = jax.ShapeDtypeStruct((), jnp.int32)
        lower_for_hopper(call, x, kernels, layer)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("model", SHAPES)
def test_sums_are_divided_alike_for_any_number_of_rows(model: str, int8: bool):
    for shape in weights_of(model):
        all_blocks = [blocks_for(*shape, rows, int8) for rows in (8, 16, 64, 128, 136, 256)]
        assert len({blocks[:3] for blocks in all_blocks}) == 1
        assert min(blocks.stages for blocks in all_blocks) >= 2
        out, depth, parts, *_ = all_blocks[0]
        assert shape[0] % out == 0
        assert shape[1] % (parts * depth) == 0
        assert parts == 1 or shape[0] // out * parts < 2 * ENOUGH_BLOCKS


@pytest.mark.parametrize(
    ("x", "kernels", "reason"),
    [
        ((8, 64), (1, 64, 64), "one layer"),
        ((264, 64), (2, 64, 64), "264 rows"),
        ((24, 96), (2, 64, 96), "multiples of 64"),
    ],
)
def test_unsupported_shapes_raise_if_named_and_fall_back_if_not(
    x: tuple, kernels: tuple, reason: str
):
    layer = jnp.zeros((), jnp.int32)
    given = jnp.zeros(x, jnp.bfloat16), jnp.zeros(kernels, jnp.bfloat16)
    with pytest.raises(ValueError, match=reason):
        layer_matmul(*given, layer=layer, backend="gpu")
    with compiling_for("gpu"), noting_backends() as picked:
        jax.eval_shape(lambda: layer_matmul(*given, layer=layer))
    assert picked == {"layer_matmul": "reference"}


def test_errors_name_the_wrong_argument():
    x, layer = jnp.zeros((8, 64)), jnp.zeros((), jnp.int32)
    with pytest.raises(ValueError, match=r"^kernels"):
        layer_matmul(x, jnp.zeros((2, 64, 32)), layer=layer)
    with pytest.raises(ValueError, match=r"^layer"):
        layer_matmul(x, jnp.zeros((2, 64, 64)), layer=jnp.zeros(2, jnp.int32))


@pytest.mark.parametrize(("rows", "copied"), [(64, False), (512, True)])
def test_only_a_step_of_many_rows_slices_a_layers_weights_out_of_the_stack(rows: int, copied: bool):
    """On a GPU a slice is a copy, which pays off only for the many rows of a prompt."""
    config = named_config("smollm2-135m")
    graphdef, weights = nnx.split(shape_of_model(config, jnp.dtype("bfloat16")))

    def step(weights: nnx.State, batch: PackedBatch, cache: jax.Array) -> tuple:
        return nnx.merge(graphdef, weights)(batch, cache, max_q_len=rows)

    with compiling_for("gpu"):
        model = nnx.merge(graphdef, weights)
        whole = jax.ShapeDtypeStruct((rows,), jnp.int32)
        slots = [jax.ShapeDtypeStruct((n,), jnp.int32) for n in (9, 8)]
        batch = PackedBatch(whole, whole, whole, whole, *slots)
        traced = jax.jit(step).trace(weights, batch, model.cache_spec(8, 1024))
    slices = re.findall(r"bf16\[(1,\d\d+,\d\d+)\] = dynamic_slice", str(traced.jaxpr))
    kernels = {f"1,{num_out},{num_in}" for num_out, num_in in weights_of("smollm2-135m")}
    assert kernels.intersection(slices) == (kernels if copied else set())
