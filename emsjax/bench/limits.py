"""What the hardware allows at most: its bandwidth and matrix rate, and what a decoding needs."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from emsjax.bench.decoding import Run
from emsjax.costs.roofline import attended
from emsjax.engine.model import Model
from emsjax.pallas_kernels.layer_matmul.api import layer_matmul

# Numbers read to measure the bandwidth, far more bytes than caches hold: rows of so many columns.
# Rows and columns of the products.
COLUMNS = 4096
READ_ROWS, READ_ROWS_ELSEWHERE = {"cpu": 2**14}, 2**18
MATRIX, MATRIX_ELSEWHERE = {"cpu": 1536}, 8192
# Rows that are multiplied with one layer after the other, as in a decode step.
FEW = 8
REPEATS = 5


class Limits(NamedTuple):
    """Measured on the device.

    Attributes:
      bytes_per_second: read from memory.
      flops: operations a second of a large matrix product.
    """

    bytes_per_second: float
    flops: float


def measure_limits(dtype: jnp.dtype, precision: str | None) -> Limits:
    """The fastest of several tries each, of reading also by the fastest of three ways.

    Args:
      dtype: of the numbers that are read and multiplied.
      precision: of products, as `jax.default_matmul_precision` has it.
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
    jax.block_until_ready(function(*arguments))
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def share_of_limit(run: Run, model: Model, limits: Limits) -> float:
    """The least seconds that a decoding needs on this device, over those that it took.

    Every step reads the weights that it multiplies, and each slot's cached tokens. Every row meets
    the layers' weights and, a token being chosen behind it, those of the logits. The longer of
    reading and computing counts. Rows of padding and holes count as work: what they cost is for the
    speedup to tell. Attention's products are left out.

    Args:
      run: what was decoded.
      model: the target.
      limits: of the device.
    """
    sizes = model.sizes
    rows, cached = float(run.counts["rows"]), float(run.counts["cached"])
    # As if all texts were of their mean length.
    length = cached / max(float(run.counts["target_steps"]), 1.0)
    cached *= attended(model.windows, length) / max(length, 1.0)
    read = run.steps * sizes.read_bytes + cached * sizes.token_bytes
    computed = rows * (sizes.row_flops + sizes.logit_flops)
    return max(read / limits.bytes_per_second, computed / limits.flops) / run.seconds
