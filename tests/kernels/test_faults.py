"""Shows that the contracts can fail: each test puts one fault into a kernel and must catch it.

Only a comparison of numbers or the race detector counts. A fault that merely breaks a shape, or
reads out of bounds, would show nothing about the contracts.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import pytest
from jax.experimental.pallas import tpu as pltpu

from emsjax.pallas_kernels.cache_update import tpu as tpu_update
from emsjax.pallas_kernels.layer_matmul import gpu as gpu_product
from emsjax.pallas_kernels.ragged_attention import (
    gpu,
    gpu_triton,
    sections,
    tpu_block,
    tpu_kernel,
    tpu_tiles,
)
from emsjax.pallas_kernels.ragged_attention.tpu_stream import Stream
from emsjax.pallas_kernels.ragged_attention.tuning import TPUBlocks
from tests.kernels import contract_attention
from tests.kernels.caches import Ragged
from tests.kernels.contract_attention import CASES, AttentionContract
from tests.kernels.contract_cache_update import CASES as UPDATE_CASES
from tests.kernels.contract_cache_update import CacheUpdateContract
from tests.kernels.contract_layer_matmul import LayerMatmulContract
from tests.kernels.test_gpu import GPU_CASES, small_sections

# Several blocks in a slot, a slot without rows, a single row, and a full slot.
RAGGED = Ragged(q_lens=(8, 0, 1, 5), kv_lens=(96, 10, 33, 71))
# The messages of the contracts' assertions about numbers.
WRONG_NUMBERS = "not finite|off by|Arrays are not equal"

Fault = Callable[[Callable], Callable]


def change(number: int, by: Callable[[Any], Any]) -> Fault:
    """Changes the positional argument of that number."""

    def fault(function: Callable) -> Callable:
        def faulty(*args: Any) -> Any:
            changed = [by(arg) if n == number else arg for n, arg in enumerate(args)]
            return function(*changed)

        return faulty

    return fault


def result(by: Callable[[Any], Any]) -> Fault:
    """Changes the returned value."""
    return lambda function: lambda *args: by(function(*args))


def field(**by: Callable[[Any], Any]) -> Fault:
    """Changes fields of the returned named tuple."""
    return result(lambda x: x._replace(**{name: f(getattr(x, name)) for name, f in by.items()}))


def nothing(function: Callable) -> Callable:
    """Does nothing."""
    del function
    return lambda *_: None


def without(act: str) -> Fault:
    """Omits the start or the wait of a copy."""
    return lambda function: lambda self, a, *rest: None if a == act else function(self, a, *rest)


def keep_all(weigh: Callable) -> Callable:
    """Keeps the weights of earlier blocks undiminished."""

    def faulty(running: Any) -> None:
        weigh(running)
        running.decay[...] = jnp.ones_like(running.decay)

    return faulty


def lose_a_part(call: Callable) -> Callable:
    """Sets the sums over the last part of the columns to zero."""
    return lambda *args: call(*args).at[-1].set(0.0)


class OneMore:
    """A reference whose numbers read as one more."""

    def __init__(self, ref: Any):
        self._ref = ref

    def __getitem__(self, index: Any) -> Any:
        return self._ref[index] + 1


# Each fault: the module or class, the name of the function in it, and the change to that function.
TPU_FAULTS: dict[str, tuple[Any, str, Fault]] = {
    "a row sees the token after it": (tpu_kernel, "visible_tokens", change(3, lambda x: x + 1)),
    "every block is taken for the first": (
        tpu_kernel,
        "visible_tokens",
        change(1, lambda x: x * 0),
    ),
    "copies are not awaited": (Stream, "copy", without("wait")),
    "both blocks go into one buffer": (Stream, "copy", change(4, lambda x: x * 0)),
    "a block ends a token early": (Stream, "valid", result(lambda x: x - 1)),
    "every piece is the first": (Stream, "_copy_some", change(5, lambda x: x * 0)),
    "a tile reads another slot": (tpu_tiles, "tile_facts", field(slot=lambda x: x * 0)),
    "rows are taken for later ones": (tpu_tiles, "tile_facts", field(row_start=lambda x: x + 1)),
    "tokens past the end are not cleared": (tpu_kernel, "clear", nothing),
    "earlier blocks do not decay": (tpu_block, "_weigh", keep_all),
}
GPU_FAULTS: dict[str, tuple[Any, str, Fault]] = {
    "a row sees the token after it": (gpu, "visible_tokens", change(3, lambda x: x + 1)),
    "every block is taken for the first": (gpu, "visible_tokens", change(1, lambda x: x * 0)),
    "tokens past the end are not cleared": (gpu, "clear_past", nothing),
    "sections are not weighed": (sections, "_combine", change(1, lambda x: x * 0)),
    "holes are attended to": (gpu, "visible_tokens", change(6, lambda x: x * 0)),
    "tokens before holes are ignored": (
        gpu,
        "visible_tokens",
        change(6, lambda x: jnp.roll(x, -1)),
    ),
}
TRITON_FAULTS: dict[str, tuple[Any, str, Fault]] = {
    "every block is taken for the first": (gpu_triton, "_visible", change(4, lambda x: x * 0)),
    "a tile's rows are taken for later ones": (
        gpu_triton,
        "_visible",
        change(2, lambda facts: [*facts[:2], facts[2] + 1, facts[3]]),
    ),
    "sections are not weighed": (sections, "_combine", change(1, lambda x: x * 0)),
    "holes are attended to": (gpu_triton, "_visible", change(0, lambda x: x._replace(holes=None))),
}
PRODUCT_FAULTS: dict[str, tuple[Any, str, Fault]] = {
    "another layer is used": (gpu_product, "sums_of", change(0, lambda x: x * 0)),
    "a part of the sums is lost": (gpu_product, "sums_of", lose_a_part),
}


def put(place: Any, function: str, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a fault into the function of that name."""
    monkeypatch.setattr(place, function, fault(getattr(place, function)))


class Attention(AttentionContract):
    """Not collected, because its name does not begin with Test."""


class Product(LayerMatmulContract):
    backend = "gpu"


class Update(CacheUpdateContract):
    backend = "tpu"


def check_attention(backend: str) -> None:
    """Checks one ragged batch with a newly traced program."""
    Attention.backend = backend
    Attention.programs.clear()
    case = CASES["gqa"] if backend == "tpu" else replace(GPU_CASES["gqa"], holes=True)
    Attention().check(case, [1] * case.max_q_len, RAGGED)


@pytest.fixture
def tpu_races(interpreting_tpu: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The races of TPU kernels, interpreted with three blocks a slot."""
    monkeypatch.setattr(tpu_tiles, "tpu_blocks", lambda *_: TPUBlocks(kv=32, piece=8, q=4))
    return interpreting_tpu


def test_tpu_without_a_fault(tpu_races: list[str]):
    check_attention("tpu")
    assert not tpu_races


@pytest.mark.parametrize("name", TPU_FAULTS)
def test_tpu(name: str, tpu_races: list[str], monkeypatch: pytest.MonkeyPatch):
    put(*TPU_FAULTS[name], monkeypatch)
    with pytest.raises(AssertionError, match=WRONG_NUMBERS):
        check_attention("tpu")
    tpu_races.clear()


def test_tpu_race_detector_sees_that_copies_are_not_awaited(
    tpu_races: list[str], monkeypatch: pytest.MonkeyPatch
):
    """The interpreter is set to copy at once, so no number changes."""
    put(Stream, "copy", without("wait"), monkeypatch)
    params = pltpu.InterpretParams(detect_races=True, dma_execution_mode="eager")
    with pltpu.force_tpu_interpret_mode(params):
        check_attention("tpu")
    assert tpu_races
    tpu_races.clear()


@pytest.fixture
def gpu_races(interpreting_gpu: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The races of GPU kernels, interpreted with three sections a slot."""
    monkeypatch.setattr(contract_attention, "CASES", GPU_CASES)
    monkeypatch.setattr(gpu, "gpu_blocks", small_sections)
    return interpreting_gpu


def test_gpu_without_a_fault(gpu_races: list[str]):
    check_attention("gpu")
    assert not gpu_races


@pytest.mark.usefixtures("gpu_races")
@pytest.mark.parametrize("name", GPU_FAULTS)
def test_gpu(name: str, monkeypatch: pytest.MonkeyPatch):
    put(*GPU_FAULTS[name], monkeypatch)
    with pytest.raises(AssertionError, match=WRONG_NUMBERS):
        check_attention("gpu")


@pytest.mark.usefixtures("interpreting_triton")
@pytest.mark.parametrize("name", TRITON_FAULTS)
def test_triton(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(contract_attention, "CASES", GPU_CASES)
    monkeypatch.setattr(gpu_triton, "gpu_blocks", small_sections)
    put(*TRITON_FAULTS[name], monkeypatch)
    with pytest.raises(AssertionError, match=WRONG_NUMBERS):
        check_attention("gpu-triton")


def test_gpu_race_detector_sees_that_queries_are_not_awaited(
    gpu_races: list[str], monkeypatch: pytest.MonkeyPatch
):
    """The interpreter copies at once, so no number changes."""
    put(gpu.plgpu, "barrier_wait", nothing, monkeypatch)
    check_attention("gpu")
    assert gpu_races
    gpu_races.clear()


@pytest.mark.usefixtures("interpreting_gpu")
@pytest.mark.parametrize("name", PRODUCT_FAULTS)
def test_gpu_product(name: str, monkeypatch: pytest.MonkeyPatch):
    Product.__init_subclass__()
    Product().test_equals_the_oracle("parts", rows=8)
    Product.__init_subclass__()
    put(*PRODUCT_FAULTS[name], monkeypatch)
    with pytest.raises(AssertionError, match=WRONG_NUMBERS):
        Product().test_equals_the_oracle("parts", rows=8)


@pytest.mark.usefixtures("interpreting_tpu")
def test_update_a_token_too_far(monkeypatch: pytest.MonkeyPatch):
    def check() -> None:
        Update().check(UPDATE_CASES["three-rows"], Ragged((3, 0, 4), (9, 3, 20)), layer=1)

    check()
    Update.__init_subclass__()
    put(tpu_update, "_kernel", change(2, OneMore), monkeypatch)
    with pytest.raises(AssertionError, match=WRONG_NUMBERS):
        check()
