"""The contracts can fail: with one fault put into a kernel, each is caught."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu

from emsjax.pallas_kernels.cache_update import tpu as tpu_update
from emsjax.pallas_kernels.layer_matmul import gpu as gpu_product
from emsjax.pallas_kernels.ragged_attention import gpu, tpu, tpu_block
from emsjax.pallas_kernels.ragged_attention.tuning import TPUBlocks
from tests.kernels import contract_attention
from tests.kernels.caches import Ragged
from tests.kernels.contract_attention import CASES, AttentionContract
from tests.kernels.contract_cache_update import CASES as UPDATE_CASES
from tests.kernels.contract_cache_update import CacheUpdateContract
from tests.kernels.contract_layer_matmul import LayerMatmulContract
from tests.kernels.test_gpu import GPU_CASES, small_sections

# Several blocks in a slot, a slot without rows, one row, the full capacity.
RAGGED = Ragged(q_lens=(8, 0, 1, 5), kv_lens=(96, 10, 33, 71))
CAUGHT = (AssertionError, ValueError, jax.errors.JaxRuntimeError)

Fault = Callable[[Callable], Callable]


def change(number: int, by: Callable[[Any], Any]) -> Fault:
    """Changes one argument."""

    def fault(function: Callable) -> Callable:
        def faulty(*args: Any) -> Any:
            changed = [by(arg) if n == number else arg for n, arg in enumerate(args)]
            return function(*changed)

        return faulty

    return fault


def result(**by: Callable[[Any], Any]) -> Fault:
    """Changes fields of what comes back."""

    def fault(function: Callable) -> Callable:
        def faulty(*args: Any) -> Any:
            right = function(*args)
            return right._replace(**{name: f(getattr(right, name)) for name, f in by.items()})

        return faulty

    return fault


def nothing(function: Callable) -> Callable:
    """Does nothing."""
    del function
    return lambda *_: None


def without(act: str) -> Fault:
    """Leaves out one of the two acts of a copy."""
    return lambda function: lambda self, a, *rest: None if a == act else function(self, a, *rest)


def keep_all(weigh: Callable) -> Callable:
    """Lets nothing decay."""

    def faulty(running: Any) -> None:
        weigh(running)
        running.decay[...] = jnp.ones_like(running.decay)

    return faulty


def lose_a_part(call: Callable) -> Callable:
    """The last part of the columns counts for nothing."""
    return lambda *args: call(*args).at[-1].set(0.0)


class OneMore:
    """A reference whose numbers are one more than they are."""

    def __init__(self, ref: Any):
        self._ref = ref

    def __getitem__(self, index: Any) -> Any:
        return self._ref[index] + 1


# Where the fault is put, and what is done to the function there.
TPU_FAULTS: dict[str, tuple[Any, str, Fault]] = {
    "a row sees the token after it": (tpu, "visible_tokens", change(3, lambda x: x + 1)),
    "every block is taken for the first": (tpu, "visible_tokens", change(1, lambda x: x * 0)),
    "copies are not awaited": (tpu._Stream, "copy", without("wait")),
    "both blocks go into one buffer": (tpu._Stream, "copy", change(4, lambda x: x * 0)),
    "a block's end is misjudged": (tpu._Stream, "valid", change(2, lambda x: x + 1)),
    "pieces lie a token too far": (tpu._Stream, "_copy_some", change(5, lambda x: x + 1)),
    "a tile reads another slot": (tpu, "tile_facts", result(slot=lambda x: x * 0)),
    "rows are taken for later ones": (tpu, "tile_facts", result(row_start=lambda x: x + 1)),
    "what lies past the end is left": (tpu, "clear", nothing),
    "earlier blocks do not decay": (tpu_block, "_weigh", keep_all),
}
GPU_FAULTS: dict[str, tuple[Any, str, Fault]] = {
    "a row sees the token after it": (gpu, "_visible", change(3, lambda x: x + 1)),
    "every block is taken for the first": (gpu, "_visible", change(1, lambda x: x * 0)),
    "what lies past the end is left": (gpu, "_clear_past", nothing),
    "sections are not weighed": (gpu, "_combine", change(1, lambda x: x * 0)),
    "holes are attended to": (gpu, "_visible", change(6, lambda x: x * 0)),
    "tokens before holes are not": (gpu, "_visible", change(6, lambda x: jnp.roll(x, -1))),
}
PRODUCT_FAULTS: dict[str, tuple[Any, str, Fault]] = {
    "another layer is taken": (gpu_product, "_call", change(0, lambda x: x * 0)),
    "a part of the sums is lost": (gpu_product, "_call", lose_a_part),
}


def put(place: Any, function: str, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a fault into the function of that name."""
    monkeypatch.setattr(place, function, fault(getattr(place, function)))


class Attention(AttentionContract):
    """Not collected: its name does not begin with Test."""


class Product(LayerMatmulContract):
    backend = "gpu"


class Update(CacheUpdateContract):
    backend = "tpu"


def check_attention(backend: str) -> None:
    """One ragged batch, with a program traced anew."""
    Attention.backend = backend
    Attention.programs.clear()
    case = CASES["gqa"] if backend == "tpu" else replace(GPU_CASES["gqa"], holes=True)
    Attention().check(case, [1] * case.max_q_len, RAGGED)


def check_tpu() -> None:
    """The same; a race that the interpreter saw is a failure too."""
    try:
        check_attention("tpu")
        races = interpret_pallas_call.races
        assert races is None or not races.races_found
    finally:
        pltpu.reset_tpu_interpret_mode_state()


@pytest.fixture
def _small_blocks(interpreting_tpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tpu, "tpu_blocks", lambda *_: TPUBlocks(kv=32, piece=8, q=4))


@pytest.mark.usefixtures("_small_blocks")
def test_tpu_without_a_fault():
    check_tpu()


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("name", TPU_FAULTS)
def test_tpu(name: str, monkeypatch: pytest.MonkeyPatch):
    put(*TPU_FAULTS[name], monkeypatch)
    with pytest.raises(CAUGHT):
        check_tpu()


@pytest.fixture
def _small_sections(interpreting_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract_attention, "CASES", GPU_CASES)
    monkeypatch.setattr(gpu, "gpu_blocks", small_sections)


@pytest.mark.usefixtures("_small_sections")
def test_gpu_without_a_fault():
    check_attention("gpu")


@pytest.mark.usefixtures("_small_sections")
@pytest.mark.parametrize("name", GPU_FAULTS)
def test_gpu(name: str, monkeypatch: pytest.MonkeyPatch):
    put(*GPU_FAULTS[name], monkeypatch)
    with pytest.raises(CAUGHT):
        check_attention("gpu")


@pytest.mark.usefixtures("interpreting_gpu")
@pytest.mark.parametrize("name", PRODUCT_FAULTS)
def test_a_gpu_product(name: str, monkeypatch: pytest.MonkeyPatch):
    Product().test_equals_the_oracle("parts", rows=8)
    put(*PRODUCT_FAULTS[name], monkeypatch)
    with pytest.raises(CAUGHT):
        Product().test_equals_the_oracle("parts", rows=8)


@pytest.mark.usefixtures("interpreting_tpu")
def test_an_update_a_token_too_far(monkeypatch: pytest.MonkeyPatch):
    def check() -> None:
        Update().check(UPDATE_CASES["three-rows"], Ragged((3, 0, 4), (9, 3, 20)), layer=1)

    check()
    Update.__init_subclass__()
    put(tpu_update, "_kernel", change(2, OneMore), monkeypatch)
    with pytest.raises(CAUGHT):
        check()
