"""The real GPU compiler compiles our kernels, whose registers do not spill. Nothing runs."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from emsjax.pallas_kernels.ahead import compile_on
from emsjax.pallas_kernels.gpu_targets import GPUS
from emsjax.pallas_kernels.norms import PartsNorm
from emsjax.pallas_kernels.report.ahead import attention_arguments, attention_call
from emsjax.pallas_kernels.report.gpu_kernels import GPURow, measure
from emsjax.pallas_kernels.report.registers import Registers, read_kernels
from emsjax.pallas_kernels.report.work import MODELS, Heads, ragged
from emsjax.pallas_kernels.residual_norm.api import residual_norm
from tests.kernels.test_tpu_compiled import OPTIONS

pytestmark = [pytest.mark.gpu_compiler, pytest.mark.usefixtures("no_compile_cache")]

# A thread can have 255. Kernels close to that spill with the next compiler.
# The attention over an int8 cache keeps numbers that it converts next to all others.
MOST_REGISTERS, MOST_WITH_INT8_CACHE = 224, 248


# The kernels that the command compiles, which would otherwise be compiled twice.
BY_COMMAND = ("a100", "smollm2-135m")


# Hopper has kernels of Mosaic's, the others of Triton's. An L4 has the least shared memory.
@pytest.mark.parametrize("model", ["smollm2-135m", "llama-3-8b"])
@pytest.mark.parametrize("gpu", ["h100", "a100", "l4"])
def test_kernels_keep_their_registers(gpu: str, model: str, tmp_path: Path):
    if (gpu, model) == BY_COMMAND:
        rows = reported(gpu, model, tmp_path / "report.json")
    else:
        rows = list(measure(gpu, model, ragged(MODELS[model], 8, 8, 2048)))
    # Attention in two dtypes, with 8 rows a slot for trees, too, and four products in three.
    names = [row.found.kernel for row in rows]
    products = [*8 * ["layer_matmul"], *4 * ["grouped_matmul"]]
    attention = ["ragged_attention"]
    assert names == [*2 * attention, *products, *4 * attention, *products]
    for row in rows:
        check(gpu, row)


def reported(gpu: str, model: str, file: Path) -> list[GPURow]:
    """Returns what the command writes into a file."""
    command = [sys.executable, "-m", "emsjax.pallas_kernels.report", "--topology", gpu]
    command += ["--models", model, "--json", str(file)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"Compiled for {gpu}, not run")
    rows = json.loads(file.read_text())["rows"]
    return [GPURow(row.pop("model"), row.pop("work"), Registers(**row)) for row in rows]


def check(gpu: str, row: GPURow) -> None:
    assert row.found.spilled_bytes == 0, row
    most = MOST_WITH_INT8_CACHE if "int8 cache" in row.work else MOST_REGISTERS
    assert row.found.registers <= most, row
    assert 0 < row.found.shared_bytes <= GPUS[gpu].block_bytes, row


# The widest heads that there are, as many as share a tile, and some whose width is no power of two.
GEMMA_2B, OPT_2_7B = Heads(8, 1, 256), Heads(32, 32, 80)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize(
    ("gpu", "heads"),
    [
        *((gpu, MODELS["llama-3-8b"]) for gpu in ("h100", "a100", "l4")),
        *((gpu, GEMMA_2B) for gpu in ("l4", "g4")),
        ("l4", OPT_2_7B),
    ],
)
def test_attention_with_every_option(gpu: str, heads: Heads, int8: bool, tmp_path: Path):
    work = ragged(heads, 8, 8, 2048)._replace(int8=int8)
    call = attention_call(work, "gpu" if gpu == "h100" else "gpu-triton", **OPTIONS["all"])
    compile_on(gpu, call, functools.partial(attention_arguments, work), dump=tmp_path)
    (found,) = read_kernels(tmp_path)
    check(gpu, GPURow("", "int8 cache" if int8 else "", found))


@pytest.mark.parametrize("width", [576, 4096, 16384])
@pytest.mark.parametrize("gpu", ["h100", "a100", "l4"])
def test_sums_with_norms(gpu: str, width: int, tmp_path: Path):
    """With the norm of what is added, which takes more registers than without it."""
    shapes = ((8, width), jnp.bfloat16), ((4, 16, width), jnp.float32), ((2, width), jnp.bfloat16)

    def call(x: jax.Array, parts: jax.Array, scales: jax.Array) -> tuple[jax.Array, jax.Array]:
        options = {"eps": 1e-5, "of_parts": PartsNorm(scales, 1)}
        return residual_norm(x, parts, scales, layer=jnp.int32(1), **options)

    given = tuple(jax.ShapeDtypeStruct(*each) for each in shapes)
    compile_on(gpu, call, lambda: given, dump=tmp_path)
    (found,) = read_kernels(tmp_path)
    check(gpu, GPURow("", "", found))
