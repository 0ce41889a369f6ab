"""Makes models with random weights, for measuring speed and memory without a checkpoint."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from emsjax.loading.build import shape_of_model
from emsjax.loading.dtypes import check_dtype, check_kv_dtype, check_quantize, dtype_for_device
from emsjax.loading.named import named_config

# Each array is generated in at most this many parts, one after another. Generating the rows of an
# embedding one by one would take minutes.
MOST_PARTS = 64


def random_model(
    config: str, dtype: str = "auto", quantize: str | None = None, kv_dtype: str | None = None
) -> nnx.Module:
    """Returns a model with random weights on the default device.

    Args:
      config: name or path of a configuration, as for `named_config`.
      dtype: as for `load_model`; "auto" means float32 on CPU and bfloat16 on an accelerator.
      quantize: as for `load_model`.
      kv_dtype: as for `load_model`.

    Raises:
      UserError: there is no such configuration, or `dtype`, `quantize` or `kv_dtype` is unknown.
    """
    check_dtype(dtype)
    check_quantize(quantize)
    check_kv_dtype(kv_dtype)
    shape = named_config(config)
    computed = jnp.dtype(dtype_for_device(dtype, "bfloat16"))
    graphdef, shapes = nnx.split(shape_of_model(shape, computed, quantize, kv_dtype))
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    made = [_random(key, leaf.shape, leaf.dtype) for key, leaf in zip(keys, leaves, strict=True)]
    return nnx.merge(graphdef, jax.tree.unflatten(tree, made))


@partial(jax.jit, static_argnums=(1, 2))
def _random(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """Returns random numbers, small ones unless they are int8, made part by part to limit memory.

    The random bits take more memory than the numbers made from them.
    """
    size = -(-shape[0] // MOST_PARTS)
    parts = -(-shape[0] // size)

    def part(key: jax.Array) -> jax.Array:
        if dtype == jnp.int4:
            return jax.random.randint(key, (size, *shape[1:]), -8, 8, jnp.int8).astype(dtype)
        if dtype == jnp.int8:
            return jax.random.randint(key, (size, *shape[1:]), -127, 128, dtype)
        return jax.random.normal(key, (size, *shape[1:]), dtype) * jnp.asarray(0.02, dtype)

    made = jax.lax.map(part, jax.random.split(key, parts))
    return made.reshape(parts * size, *shape[1:])[: shape[0]]
