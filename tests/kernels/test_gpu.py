"""The GPU kernels keep the contract, interpreted on a CPU; that for Hopper lowers for it."""

from dataclasses import replace
from typing import ClassVar

import jax
import pytest

from emsjax.pallas_kernels.backends import compiling_for, noting_backends
from emsjax.pallas_kernels.int8_cache import int8_cache_spec
from emsjax.pallas_kernels.ragged_attention import gpu, gpu_triton
from emsjax.pallas_kernels.ragged_attention.tuning import GPUBlocks, gpu_blocks
from emsjax.pallas_kernels.report.ahead import attention_arguments, attention_call
from emsjax.pallas_kernels.report.work import Heads, ragged
from tests.kernels import contract_attention
from tests.kernels.contract_attention import CASES, AttentionContract, Case
from tests.kernels.lowering import lower_for_hopper
from tests.kernels.test_tpu_compiled import OPTIONS


def on_gpu(name: str, case: Case) -> Case:
    """Only 16-bit dtypes, and capacities of multiples of 64 tokens."""
    return replace(case, cache_len=192, dtype="float16" if name == "float16" else "bfloat16")


def on_hopper(case: Case) -> Case:
    """Int8 heads of 64 numbers."""
    return replace(case, head_dim=64) if case.int8 else case


GPU_CASES = {name: on_gpu(name, case) for name, case in CASES.items()}
HOPPER_CASES = {name: on_hopper(case) for name, case in GPU_CASES.items()}


class TestAttention(AttentionContract):
    backend = "gpu"
    cases: ClassVar = tuple(HOPPER_CASES)
    examples = 2
    quick: ClassVar = ("all",)

    @pytest.fixture(autouse=True)
    def _interpreted(self, interpreting_gpu: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(contract_attention, "CASES", HOPPER_CASES)


def small_sections(*args, **options) -> GPUBlocks:
    """Returns block sizes that split the cache's 192 tokens into three sections of one block."""
    return gpu_blocks(*args, **options)._replace(section=64)


class TestAttentionSections(AttentionContract):
    """With several sections in a slot, whose sums must be combined."""

    backend = "gpu"
    cases: ClassVar = (
        *("gqa", "prompts", "all", "holes-and-all", "int8", "int8-and-all"),
        *("sink-tokens", "sink-tokens-and-all"),
    )
    examples = 1
    quick: ClassVar = ("gqa", "int8-and-all", "sink-tokens")

    @pytest.fixture(autouse=True)
    def _interpreted(self, interpreting_gpu: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(contract_attention, "CASES", HOPPER_CASES)
        monkeypatch.setattr(gpu, "gpu_blocks", small_sections)


class TestTriton(AttentionContract):
    backend = "gpu-triton"
    cases: ClassVar = tuple(GPU_CASES)
    examples = 2
    quick: ClassVar = (
        *("all", "single-rows", "holes-and-all", "prompts", "int8-and-all"),
        *("sink-tokens", "h96"),
    )

    @pytest.fixture(autouse=True)
    def _interpreted(self, interpreting_triton: None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(contract_attention, "CASES", GPU_CASES)
        monkeypatch.setattr(gpu_triton, "gpu_blocks", small_sections)


@pytest.mark.parametrize(
    ("capability", "width", "int8", "chosen"),
    [
        ("9.0", 64, False, "gpu"),
        ("9.0", 96, False, "gpu"),
        ("9.0", 128, True, "gpu"),
        ("9.0", 80, True, "gpu-triton"),
        ("8.0", 64, False, "gpu-triton"),
        ("8.0", 64, True, "gpu-triton"),
        ("12.0", 128, False, "gpu-triton"),
        ("8.9", 96, False, "gpu-triton"),
        ("8.9", 40, False, "reference"),
        ("7.5", 64, False, "reference"),
    ],
)
def test_each_gpu_has_its_kernel(capability: str, width: int, int8: bool, chosen: str):
    with compiling_for("gpu", capability), noting_backends() as picked:
        work = ragged(Heads(8, 4, width), batch=8, rows=8, context=2048)._replace(int8=int8)
        jax.eval_shape(attention_call(work, None), *attention_arguments(work))
    assert picked == {"ragged_attention": chosen}


@pytest.mark.parametrize(("slots", "reason"), [(15, None), (17, "count in 32 bits"), (33, None)])
def test_int8_caches_that_jax_counts_wrongly_are_left_to_the_reference(slots, reason):
    cache = int8_cache_spec(32, slots, 2048, num_kv_heads=8, head_dim=128)
    q = jax.ShapeDtypeStruct((8, 32, 128), jax.numpy.bfloat16)
    found = gpu_triton.unsupported(q, cache, 8)
    assert (found is None) if reason is None else (reason in found)


SHAPES = {
    "smollm2-135m": Heads(9, 3, 64),
    "opt-2.7b": Heads(32, 32, 80),
    "h96": Heads(12, 12, 96),
    "llama-3-8b": Heads(32, 8, 128),
    "h256": Heads(8, 4, 256),
    "mqa": Heads(64, 1, 128),
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("model", SHAPES)
def test_lowers_for_hopper(model: str, options: str):
    lower(SHAPES[model], 8, **OPTIONS[options])


@pytest.mark.parametrize("model", SHAPES)
def test_prompts_lower_for_hopper(model: str):
    """Lowering fails if a kernel needs more shared memory than a Hopper GPU has."""
    lower(SHAPES[model], 512)


@pytest.mark.parametrize("width", [8, 24, 264])
def test_heads_of_unsupported_widths_use_the_reference(width: int):
    with compiling_for("gpu"), noting_backends() as picked:
        work = ragged(Heads(8, 4, width), batch=8, rows=8, context=2048)
        jax.eval_shape(attention_call(work, None), *attention_arguments(work))
    assert picked == {"ragged_attention": "reference"}


def lower(heads: Heads, rows: int, **options) -> None:
    work = ragged(heads, batch=8, rows=rows, context=2048)
    lower_for_hopper(attention_call(work, "gpu", **options), *attention_arguments(work))
