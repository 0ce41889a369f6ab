"""Fixtures that run kernels on a CPU and simulate a device's memory, copies and races."""

import functools
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import callback as jax_callback
from jax._src import dispatch
from jax._src.interpreters import mlir
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax._src.pallas.mosaic_gpu import core as gpu_core
from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks
from jax._src.pallas.mosaic_gpu.interpret import params as gpu_params
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from emsjax.pallas_kernels import hopper
from emsjax.pallas_kernels.backends import compiling_for
from emsjax.pallas_kernels.ragged_attention import tpu_block

# The interpreter leaves register layouts to XLA, which has no lowering for them on a CPU.
mlir.register_lowering(gpu_core.layout_cast_p, lambda _, x, **__: [x], platform="cpu")

# Each copy from global memory gets the next of these simulated threads. With jax's default of one
# thread, waiting for any copy counts as waiting for all earlier ones, which hides a missing wait.
COPY_THREADS = 64


@pytest.fixture
def interpreting_triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compiles for a GPU and interprets Triton kernels, if there is no GPU to run them."""
    if jax.default_backend() == "gpu":
        yield
        return
    monkeypatch.setattr(pl, "pallas_call", functools.partial(pl.pallas_call, interpret=True))
    with compiling_for("gpu"):
        yield


def flat_value(block: Any) -> jax.Array:
    """Returns what `tpu_block._flat` returns; the interpreter reshapes values, not references."""
    flat = block[...].reshape(-1, block.shape[-1])
    return flat if flat.dtype == jnp.float32 else pltpu.bitcast(flat, jnp.uint32)


def product(left: Any, right: Any, over: int) -> jax.Array:
    """Returns what `hopper.product` and `hopper.product_transposed` return, computed by XLA."""
    return jax.lax.dot_general(
        left[...],
        right[...],
        (((1,), (over,)), ((), ())),
        preferred_element_type=jnp.float32,
    )


def write_transposed(product: jax.Array, target: Any) -> None:
    """Does what `hopper.write_transposed` does, without a transposed view."""
    target[...] = product.T


def call_on_host(*args: Any, callback: Callable[..., Any], **_: Any) -> Any:
    """Replaces jax's `io_callback_impl`, which puts every argument on a jax device first.

    An interpreted kernel makes thousands of small callbacks, and copying their arguments took most
    of its time.
    """
    return jax.tree.map(np.asarray, callback(*map(np.array, args)))


def record_races(monkeypatch: pytest.MonkeyPatch, interpreter: ModuleType) -> list[str]:
    """Returns a list that receives an entry for every race that any kernel call has.

    The interpreters themselves remember only the races of the latest call.
    """
    races: list[str] = []

    class Recorded(interpreter.RaceDetectionState):
        def __setattr__(self, name: str, value: Any) -> None:
            if name == "races_found" and value:
                races.append("a race; its two accesses are printed above")
            super().__setattr__(name, value)

    monkeypatch.setattr(interpreter, "RaceDetectionState", Recorded)
    return races


def forget_failed_call() -> None:
    """Lets later kernels run after a check inside the interpreter has failed.

    They would otherwise wait for the failed call and fail too.
    """
    pltpu.reset_tpu_interpret_mode_state()
    gpu_callbacks.reset_gpu_interpret_mode_state()
    dispatch.runtime_tokens.clear()


@pytest.fixture
def interpreting_tpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Interprets TPU kernels if there is no TPU; yields the list of races, which fail the test."""
    if jax.default_backend() == "tpu":
        yield []
        return
    monkeypatch.setattr(tpu_block, "_flat", flat_value)
    monkeypatch.setattr(jax_callback, "io_callback_impl", call_on_host)
    races = record_races(monkeypatch, interpret_pallas_call)
    params = pltpu.InterpretParams(detect_races=True)
    with compiling_for("tpu"), pltpu.force_tpu_interpret_mode(params):
        yield races
    forget_failed_call()
    assert not races


@pytest.fixture
def interpreting_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Interprets GPU kernels if there is no GPU; yields the list of races, which fail the test.

    The two tensor core products, the transposed write and the conversion of int8 are replaced,
    because the interpreter rejects their operands. The race detector sees copies into shared memory
    that are not awaited (see `test_faults.py`). It does not check copies out of shared memory,
    which the interpreter performs at once: a missing `commit_smem` or `wait_smem_to_gmem` shows
    only on a GPU.
    """
    if jax.default_backend() == "gpu":
        yield []
        return
    monkeypatch.setattr(hopper, "product", lambda a, b: product(a, b, 0))
    monkeypatch.setattr(hopper, "product_transposed", lambda a, b: product(a, b, 1))
    monkeypatch.setattr(hopper, "write_transposed", write_transposed)
    monkeypatch.setattr(hopper, "widened", lambda source, dtype: source[...].astype(dtype))
    monkeypatch.setattr(jax_callback, "io_callback_impl", call_on_host)
    races = record_races(monkeypatch, gpu_callbacks)
    params = gpu_params.InterpretGPUParams(
        detect_races=True, num_tma_threads_per_device=COPY_THREADS
    )
    with compiling_for("gpu"), gpu_params.force_gpu_interpret_mode(params):
        yield races
    forget_failed_call()
    assert not races
