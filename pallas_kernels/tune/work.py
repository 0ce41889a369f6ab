"""The calls whose block sizes are tuned: a model's attention and products, and experts."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emsjax.pallas_kernels.expert_matmul.api import expert_matmul
from emsjax.pallas_kernels.expert_matmul.tiles import Tiles, tiles_of, to_tiles
from emsjax.pallas_kernels.layer_matmul.api import layer_matmul
from emsjax.pallas_kernels.report.ahead import attention_arguments, attention_call
from emsjax.pallas_kernels.report.work import Work, weights_of

# Layers of weights. With two, a product reads others than the last one did.
NUM_LAYERS = 2
# [E, out, in] of the experts of Qwen3-30B-A3B, and how many of them a row chooses.
EXPERTS, CHOSEN = ((128, 1536, 2048), (128, 2048, 768)), 8


class Job(NamedTuple):
    """A call to tune.

    Attributes:
      name: for display.
      call: takes the layer and the other arguments.
      arguments: returns the number of layers and the other arguments.
    """

    name: str
    call: Callable[..., jax.Array]
    arguments: Callable[[], tuple[Any, ...]]


def jobs(model: str, work: Work) -> Iterator[Job]:
    """Yields the calls of a model in `MODELS`, with as many rows as the work has.

    Args:
      model: its name.
      work: the attention.
    """
    attend = attention_call(work, None)

    def attention(layer: jax.Array, q: jax.Array, cache: Any, *others: jax.Array) -> jax.Array:
        return attend(q, cache, layer, *others)

    yield Job(f"attention of {model}", attention, functools.partial(_attention, work))
    for dtype in ("bfloat16", "int8"):
        for num_out, num_in in weights_of(model):
            shapes = work.num_rows, num_out, num_in, dtype
            name = f"{num_out}x{num_in} {dtype} of {model}"
            yield Job(name, _multiply, functools.partial(_product, *shapes))


def expert_jobs(work: Work) -> Iterator[Job]:
    """Yields products with experts, with as many rows as the work has."""
    for num_experts, num_out, num_in in EXPERTS:
        shapes = work.num_rows, num_experts, num_out, num_in
        name = f"{num_experts} experts of {num_out}x{num_in}"
        yield Job(name, _multiply_experts, functools.partial(_experts, *shapes))


def _attention(work: Work) -> tuple[Any, ...]:
    q, cache, _, *_ = attention_arguments(work)
    cu_q_lens = np.cumsum([0, *work.q_lens], dtype=np.int32)
    kv_lens = np.asarray(work.kv_lens, np.int32)
    chains = jnp.full(work.num_rows, 0xFFFFFFFF, jnp.uint32)
    layers = cache.shape[0]
    lengths = jnp.asarray(cu_q_lens), jnp.asarray(kv_lens)
    return layers, _normal(q), jax.tree.map(_normal, cache), *lengths, chains


def _multiply(layer: jax.Array, x: jax.Array, kernels: jax.Array) -> jax.Array:
    return layer_matmul(x, kernels, layer=layer)


def _product(num_rows: int, num_out: int, num_in: int, dtype: str) -> tuple[Any, ...]:
    x = jax.ShapeDtypeStruct((num_rows, num_in), jnp.bfloat16)
    kernels = jax.ShapeDtypeStruct((NUM_LAYERS, num_out, num_in), jnp.dtype(dtype))
    return NUM_LAYERS, _normal(x), _normal(kernels)


def _multiply_experts(
    layer: jax.Array, x: jax.Array, kernels: jax.Array, tiles: Tiles
) -> jax.Array:
    return expert_matmul(x, kernels, layer=layer, tiles=tiles)


def _experts(num_rows: int, num_experts: int, num_out: int, num_in: int) -> tuple[Any, ...]:
    rng = np.random.default_rng(0)
    chosen = [rng.permutation(num_experts)[:CHOSEN] for _ in range(num_rows)]
    used = jnp.ones(num_rows, bool)
    tiles = tiles_of(jnp.asarray(chosen, jnp.int32), used, num_experts)
    x = _normal(jax.ShapeDtypeStruct((num_rows, num_in), jnp.bfloat16))
    shape = (NUM_LAYERS, num_experts, num_out, num_in)
    kernels = _normal(jax.ShapeDtypeStruct(shape, jnp.bfloat16))
    return NUM_LAYERS, to_tiles(x, tiles), kernels, tiles


def _normal(spec: jax.ShapeDtypeStruct) -> jax.Array:
    """Returns random numbers, or ones of a type of whole numbers. Their values take no time."""
    if not jnp.issubdtype(spec.dtype, jnp.floating):
        return jnp.ones(spec.shape, spec.dtype)
    return jax.random.normal(jax.random.key(0), spec.shape, spec.dtype)
