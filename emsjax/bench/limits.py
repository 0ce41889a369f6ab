"""The limits of the hardware: its bandwidth, its matrix rate, and how close a decoding comes."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from emsjax.bench.decoding import Run
from emsjax.costs.roofline import attended
from emsjax.engine.model import Model
from emsjax.pallas_kernels.layer_matmul.api import layer_matmul

# The array that is read to measure the bandwidth, [rows, columns]: far larger than any cache.
COLUMNS = 4096
READ_ROWS, READ_ROWS_ELSEWHERE = {"cpu": 2**14}, 2**18
# Rows and columns of the square matrices that are multiplied to measure the matrix rate.
MATRIX, MATRIX_ELSEWHERE = {"cpu": 1536}, 8192
# Rows that are multiplied with one layer's weights after another's, as in a decode step.
FEW = 8
REPEATS = 5


class Limits(NamedTuple):
    """Rates measured on the device.

    Attributes:
      bytes_per_second: bandwidth of reads from memory.
      flops: operations per second of a large matrix product.
    """

    bytes_per_second: float
    flops: float


def measure_limits(dtype: jnp.dtype, precision: str | None) -> Limits:
    """Measures the device's limits, each as the fastest of `REPEATS` tries.

    Memory is read in three ways, of which the fastest counts.

    Args:
      dtype: type of the numbers that are read and multiplied.
      precision: precision of products, as for `jax.default_matmul_precision`.
    """
    platform, dtype = jax.default_backend(), jnp.dtype(dtype)
    size = MATRIX.get(platform, MATRIX_ELSEWHERE)
    rows = jnp.ones((READ_ROWS.get(platform, READ_ROWS_ELSEWHERE), COLUMNS), dtype)
    vector, square = jnp.ones(COLUMNS, dtype), jnp.ones((size, size), dtype)
    few, stack = jnp.ones((FEW, COLUMNS), dtype), rows.reshape(2, -1, COLUMNS)
    with jax.default_matmul_precision(precision):
        reading = min(
            _fastest(_largest, rows),
            _fastest(_multiply, rows, vector),
            _fastest(_multiply_layers, few, stack),
        )
        return Limits(rows.nbytes / reading, 2 * size**3 / _fastest(_multiply, square, square))


@jax.jit
def _largest(array: jax.Array) -> jax.Array:
    return array.max(axis=1)


@jax.jit
def _multiply(a: jax.Array, b: jax.Array) -> jax.Array:
    return a @ b


@jax.jit
def _multiply_layers(few: jax.Array, stack: jax.Array) -> jax.Array:
    layers = jnp.arange(stack.shape[0], dtype=jnp.int32)
    return jax.lax.map(lambda layer: layer_matmul(few, stack, layer=layer), layers)


def _fastest(function: Callable[..., Any], *arguments: jax.Array) -> float:
    """Seconds of the fastest of `REPEATS` calls, after one call that compiles."""
    jax.block_until_ready(function(*arguments))
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def share_of_limit(run: Run, model: Model, limits: Limits) -> float:
    """The least time a decoding needs on this device, as a share of the time it took.

    Every step reads the weights that it multiplies (of experts as many as its mean number of rows
    is expected to choose) and each slot's cached tokens. Every row is
    multiplied with the layers' weights and, since a token is chosen after it, with those of the
    logits. The longer of reading and computing counts. Padding rows and holes count as work: their
    cost shows in the speedup instead. Attention's products are left out.

    Args:
      run: the decoding.
      model: the target.
      limits: the device's limits.
    """
    sizes = model.sizes
    rows, cached = float(run.counts["rows"]), float(run.counts["cached"])
    # Windowed layers read less of long texts; the estimate gives every text the mean length.
    length = cached / max(float(run.counts["target_steps"]), 1.0)
    cached *= attended(model.windows, length) / max(length, 1.0)
    read = run.steps * sizes.step_bytes(rows / max(run.steps, 1)) + cached * sizes.token_bytes
    computed = rows * (sizes.row_flops + sizes.logit_flops)
    return max(read / limits.bytes_per_second, computed / limits.flops) / run.seconds
