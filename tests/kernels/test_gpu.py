"""The GPU kernel keeps the contract, interpreted on CPU, and lowers for a Hopper GPU."""

from dataclasses import replace
from typing import ClassVar

import jax
import jax.numpy as jnp
import pytest

from emsjax.pallas_kernels.backends import compiling_for
from emsjax.pallas_kernels.ragged_attention import gpu
from emsjax.pallas_kernels.ragged_attention.api import ragged_attention
from emsjax.pallas_kernels.ragged_attention.tuning import GPUBlocks, gpu_blocks
from tests.kernels import contract_attention
from tests.kernels.contract_attention import CASES, AttentionContract

# The kernel takes 16-bit types, and caches in multiples of 64 tokens.
GPU_CASES = {
    name: replace(case, cache_len=192, dtype="float16" if name == "float16" else "bfloat16")
    for name, case in CASES.items()
}


class TestAttention(AttentionContract):
    backend = "gpu"
    cases: ClassVar = tuple(GPU_CASES)
    examples = 3
    quick: ClassVar = ("gqa", "all")

    @pytest.fixture(autouse=True)
    def _interpreted(self, interpreting_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(contract_attention, "CASES", GPU_CASES)


def small_sections(*args) -> GPUBlocks:
    """Three sections of one block each for 192 tokens of cache."""
    return gpu_blocks(*args)._replace(section=64)


class TestAttentionSections(AttentionContract):
    """Several sections a slot, and so sums that are combined."""

    backend = "gpu"
    cases: ClassVar = ("gqa", "prompts", "window", "all", "bfloat16")
    examples = 3
    quick: ClassVar = ("gqa",)

    @pytest.fixture(autouse=True)
    def _interpreted(self, interpreting_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(contract_attention, "CASES", GPU_CASES)
        monkeypatch.setattr(gpu, "gpu_blocks", small_sections)


SHAPES = {
    "smollm2-135m": (9, 3, 64),
    "opt-2.7b": (32, 32, 80),
    "gpt2-h96": (12, 12, 96),
    "llama-3-8b": (32, 8, 128),
    "h256": (8, 4, 256),
    "mqa": (64, 1, 128),
}


@pytest.mark.parametrize("options", ["plain", "all"])
@pytest.mark.parametrize("model", SHAPES)
def test_lowers_for_hopper(model, options):
    num_heads, num_kv_heads, head_dim = SHAPES[model]
    num_slots, num_rows, capacity, dtype = 8, 64, 2048, jnp.bfloat16
    rows = -(-2 * num_kv_heads * head_dim // 128)
    extra = {"window": 512, "soft_cap": 30.0} if options == "all" else {}

    def call(q, cache, layer, cu_q_lens, kv_lens, ancestors):
        return ragged_attention(
            q,
            cache,
            layer=layer,
            cu_q_lens=cu_q_lens,
            kv_lens=kv_lens,
            num_kv_heads=num_kv_heads,
            max_q_len=8,
            scale=head_dim**-0.5,
            ancestors=ancestors if options == "all" else None,
            backend="gpu",
            **extra,
        )

    arguments = [
        jax.ShapeDtypeStruct((num_rows, num_heads, head_dim), dtype),
        jax.ShapeDtypeStruct((4, num_slots, capacity, rows, 128), dtype),
        jax.ShapeDtypeStruct((), jnp.int32),
        jax.ShapeDtypeStruct((num_slots + 1,), jnp.int32),
        jax.ShapeDtypeStruct((num_slots,), jnp.int32),
        jax.ShapeDtypeStruct((num_rows,), jnp.uint32),
    ]
    disabled = [
        jax.export.DisabledSafetyCheck.custom_call(f"mosaic_gpu{suffix}") for suffix in ("", "_v2")
    ]
    with compiling_for("gpu"):
        exported = jax.export.export(jax.jit(call), platforms=["cuda"], disabled_checks=disabled)(
            *arguments
        )
    assert "mosaic_gpu" in exported.mlir_module()
