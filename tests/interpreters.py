"""Runs kernels on a CPU, and simulates the memory, the copies and the races of the device."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax._src import dispatch
from jax._src.interpreters import mlir
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax._src.pallas.mosaic_gpu import core as gpu_core
from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks
from jax._src.pallas.mosaic_gpu.interpret import params as gpu_params
from jax.experimental.pallas import tpu as pltpu

from emsjax.pallas_kernels import hopper
from emsjax.pallas_kernels.backends import compiling_for
from emsjax.pallas_kernels.ragged_attention import tpu_block

# The interpreter leaves register layouts to XLA, which has none on a CPU.
mlir.register_lowering(gpu_core.layout_cast_p, lambda _, x, **__: [x], platform="cpu")


def flat_value(block: Any) -> jax.Array:
    """Replaces `tpu_block._flat`, because the interpreter reshapes values and not references."""
    flat = block[...].reshape(-1, block.shape[-1])
    return flat if flat.dtype == jnp.float32 else pltpu.bitcast(flat, jnp.uint32)


def product(left: Any, right: Any, over: int) -> jax.Array:
    """Computes what `hopper.product` and `hopper.product_transposed` do, with XLA."""
    return jax.lax.dot_general(
        left[...],
        right[...],
        (((1,), (over,)), ((), ())),
        preferred_element_type=jnp.float32,
    )


@pytest.fixture
def interpreting_tpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Interprets TPU kernels if there is no TPU; a race fails the test."""
    if jax.default_backend() == "tpu":
        yield
        return
    monkeypatch.setattr(tpu_block, "_flat", flat_value)
    params = pltpu.InterpretParams(detect_races=True)
    with compiling_for("tpu"), pltpu.force_tpu_interpret_mode(params):
        yield
    races = interpret_pallas_call.races
    pltpu.reset_tpu_interpret_mode_state()
    # If a check inside the interpreter failed, the next program would wait for it and fail too.
    dispatch.runtime_tokens.clear()
    assert races is None or not races.races_found


@pytest.fixture
def interpreting_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Interprets GPU kernels if there is no GPU; a detected race fails the test.

    The two calls of the tensor cores are replaced, because the interpreter does not support their
    operands. The race detector is on, but it missed a wait that was left out on purpose. Only a GPU
    shows that.
    """
    if jax.default_backend() == "gpu":
        yield
        return
    monkeypatch.setattr(hopper, "product", lambda a, b: product(a, b, 0))
    monkeypatch.setattr(hopper, "product_transposed", lambda a, b: product(a, b, 1))
    params = gpu_params.InterpretGPUParams(detect_races=True)
    with compiling_for("gpu"), gpu_params.force_gpu_interpret_mode(params):
        yield
    races = gpu_callbacks._races
    gpu_callbacks.reset_gpu_interpret_mode_state()
    assert races is None or not races.races_found
