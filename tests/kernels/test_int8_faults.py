"""Shows that the contracts of int8 caches can fail, as `test_faults` does for other caches."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from emsjax.pallas_kernels.cache_update import api as update_api
from emsjax.pallas_kernels.ragged_attention import (
    gpu,
    gpu_triton,
    reference,
    tpu_block,
    tpu_kernel,
    tpu_tiles,
)
from emsjax.pallas_kernels.ragged_attention.tpu_stream import Stream
from emsjax.pallas_kernels.ragged_attention.tuning import TPUBlocks
from tests.kernels.caches import Ragged
from tests.kernels.contract_attention import CASES, AttentionContract
from tests.kernels.contract_cache_update import INT8_CASES, CacheUpdateContract
from tests.kernels.test_faults import WRONG_NUMBERS, Fault, change, field, nothing, put, without
from tests.kernels.test_gpu import small_sections

# Two blocks in a slot, a slot without rows, a single row, and a full slot.
RAGGED = Ragged(q_lens=(8, 0, 1, 5), kv_lens=(256, 10, 133, 71))
CASE = replace(CASES["int8"], dtype="float32")


def of_keys(factors: Callable) -> Callable:
    """Takes the scales of keys for those of values."""
    keys = CASE.num_kv_heads
    return lambda scales, tokens, first, end: factors(
        scales, tokens, first % keys, first % keys + end - first
    )


def swapped(pack: Callable) -> Callable:
    return lambda k, v, cache: pack(v, k, cache)


TPU_FAULTS: dict[str, tuple[Any, str, Fault]] = {
    "scales past the end are not cleared": (tpu_kernel, "clear_scales", nothing),
    "every block has the scales of the first": (
        Stream,
        "_copy_scales",
        change(3, lambda x: x * 0),
    ),
    "scales are not awaited": (Stream, "_copy_scales", without("wait")),
    "values are scaled as keys": (tpu_block, "_factors", of_keys),
}
# `first_scale` gets the options, the slot, the first token, and the head.
GPU_FAULTS: dict[str, tuple[str, Fault]] = {
    "every block has the scales of the first": ("first_scale", change(2, lambda x: x * 0)),
    "every slot has the scales of the first": ("first_scale", change(1, lambda x: x * 0)),
    "values are scaled as keys": ("first_scale", change(3, lambda x: x % CASE.num_kv_heads)),
}
REFERENCE_FAULTS: dict[str, tuple[Any, str, Fault]] = {
    "keys are not scaled": (reference, "read_block", field(k_scale=lambda x: x * 0 + 1)),
    "values are not scaled": (reference, "read_block", field(v_scale=lambda x: x * 0 + 1)),
}


class Attention(AttentionContract):
    """Not collected, because its name does not begin with Test."""


class Update(CacheUpdateContract):
    backend = "reference"


def check_attention(backend: str, dtype: str = "float32") -> None:
    """Checks one ragged batch with a newly traced program."""
    Attention.backend = backend
    Attention.programs.clear()
    Attention().check(replace(CASE, dtype=dtype), [1] * CASE.max_q_len, RAGGED)


@pytest.mark.parametrize("name", [None, *TPU_FAULTS])
def test_tpu(name: str | None, interpreting_tpu: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tpu_tiles, "tpu_blocks", lambda *_: TPUBlocks(kv=128, piece=8, q=4))
    if name is None:
        check_attention("tpu")
        assert not interpreting_tpu
        return
    put(*TPU_FAULTS[name], monkeypatch)
    with pytest.raises(AssertionError, match=WRONG_NUMBERS):
        check_attention("tpu")
    interpreting_tpu.clear()


def check_gpu(kernel: Any, backend: str, name: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "gpu_blocks", small_sections)
    if name is None:
        check_attention(backend, "bfloat16")
        return
    put(kernel, *GPU_FAULTS[name], monkeypatch)
    with pytest.raises(AssertionError, match=WRONG_NUMBERS):
        check_attention(backend, "bfloat16")


@pytest.mark.parametrize("name", [None, *GPU_FAULTS])
def test_hopper(name: str | None, interpreting_gpu: list[str], monkeypatch: pytest.MonkeyPatch):
    check_gpu(gpu, "gpu", name, monkeypatch)


def test_scales_past_the_end_on_hopper(interpreting_gpu: list[str], monkeypatch):
    put(gpu, "clear_scales", lambda _: lambda end, scales: scales, monkeypatch)
    with pytest.raises(AssertionError, match=WRONG_NUMBERS):
        check_attention("gpu", "bfloat16")


@pytest.mark.parametrize("name", [None, *GPU_FAULTS])
def test_triton(name: str | None, interpreting_triton: None, monkeypatch: pytest.MonkeyPatch):
    check_gpu(gpu_triton, "gpu-triton", name, monkeypatch)


@pytest.mark.parametrize("name", REFERENCE_FAULTS)
def test_reference(name: str, monkeypatch: pytest.MonkeyPatch):
    put(*REFERENCE_FAULTS[name], monkeypatch)
    with pytest.raises(AssertionError, match=WRONG_NUMBERS):
        check_attention("reference")


def test_scales_of_keys_and_values_are_told_apart(monkeypatch: pytest.MonkeyPatch):
    put(update_api, "pack_scales", swapped, monkeypatch)
    case = INT8_CASES["part-of-a-tile"]
    with pytest.raises(AssertionError, match=WRONG_NUMBERS):
        Update().check_int8(case, Ragged((1, 0, 4), (9, 3, 24)), layer=1)
