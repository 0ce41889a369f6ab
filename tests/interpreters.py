"""Running kernels on CPU, with the memory, the copies and the races of the device simulated."""

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

# The interpreter leaves a layout of registers to XLA, which on a CPU has none.
mlir.register_lowering(gpu_core.layout_cast_p, lambda _, x, **__: [x], platform="cpu")


def flat_value(block: Any) -> jax.Array:
    """What `tpu_block._flat` gives; the interpreter reshapes values, not references."""
    flat = block[...].reshape(-1, block.shape[-1])
    return flat if flat.dtype == jnp.float32 else pltpu.bitcast(flat, jnp.uint32)


def product(left: Any, right: Any, over: int) -> jax.Array:
    """What `hopper.product` and `hopper.product_transposed` give, in XLA."""
    return jax.lax.dot_general(
        left[...],
        right[...],
        (((1,), (over,)), ((), ())),
        preferred_element_type=jnp.float32,
    )


@pytest.fixture
def interpreting_tpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """TPU kernels run interpreted, where there is no TPU; a race fails the test."""
    if jax.default_backend() == "tpu":
        yield
        return
    monkeypatch.setattr(tpu_block, "_flat", flat_value)
    params = pltpu.InterpretParams(detect_races=True)
    with compiling_for("tpu"), pltpu.force_tpu_interpret_mode(params):
        yield
    races = interpret_pallas_call.races
    pltpu.reset_tpu_interpret_mode_state()
    # Where a check inside the interpreter failed, what comes next would wait for it and fail too.
    dispatch.runtime_tokens.clear()
    assert races is None or not races.races_found


@pytest.fixture
def interpreting_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """GPU kernels run interpreted, where there is no GPU.

    All but the two calls of the tensor cores, whose operands the interpreter does not take. Its
    race detector is on, but did not see a missing wait put in on purpose: that takes a GPU.
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
