"""The real GPU compiler compiles the Mosaic kernels for Hopper. Nothing runs."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest

from emsjax.loading.named import named_config
from emsjax.pallas_kernels.ahead import compile_on
from emsjax.pallas_kernels.layer_matmul.api import layer_matmul
from emsjax.pallas_kernels.report.ahead import attention_arguments, attention_call
from emsjax.pallas_kernels.report.registers import Registers, read_registers
from emsjax.pallas_kernels.report.work import heads_of, ragged
from tests.kernels.test_layer_matmul import weights_of

pytestmark = [pytest.mark.gpu_compiler, pytest.mark.usefixtures("no_compile_cache")]

# A thread can have 255. Kernels close to that spill with the next compiler.
MOST_REGISTERS = 224


@pytest.fixture
def printed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> Callable[[], list[Registers]]:
    """Returns a function that returns the registers of all kernels compiled in the test."""
    monkeypatch.setenv("MOSAIC_GPU_DUMP_PTXAS", "1")

    def read() -> list[Registers]:
        return read_registers("".join(capfd.readouterr()))

    return read


def check(kernels: list[Registers], name: str, count: int) -> None:
    assert [kernel.kernel for kernel in kernels] == [name] * count
    for kernel in kernels:
        assert kernel.spilled_bytes == 0, kernel
        assert kernel.registers <= MOST_REGISTERS, kernel


@pytest.mark.parametrize("model", ["smollm2-135m", "llama-3-8b"])
def test_attention_keeps_its_registers(model: str, printed):
    for rows in (1, 8):
        work = ragged(heads_of(named_config(model)), 8, rows, 2048)
        compile_on("h100", attention_call(work, "gpu"), lambda work=work: attention_arguments(work))
    check(printed(), "ragged_attention", 2)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("model", ["smollm2-135m", "llama-3-8b"])
def test_products_keep_their_registers(model: str, dtype: str, printed):
    def call(*all_arguments: jax.Array) -> list[jax.Array]:
        layer, *others = all_arguments
        pairs = zip(others[::2], others[1::2], strict=True)
        return [layer_matmul(x, kernels, layer=layer, backend="gpu") for x, kernels in pairs]

    def arguments() -> tuple:
        found = [jax.ShapeDtypeStruct((), jnp.int32)]
        for rows in (8, 64):
            for num_out, num_in in weights_of(model):
                found.append(jax.ShapeDtypeStruct((rows, num_in), jnp.bfloat16))
                found.append(jax.ShapeDtypeStruct((2, num_out, num_in), dtype))
        return tuple(found)

    compile_on("h100", call, arguments)
    check(printed(), "layer_matmul", 8)
