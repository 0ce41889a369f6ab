"""A model of some shape without a checkpoint: for measuring what it costs."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from emsjax.loading.build import shape_of_model
from emsjax.loading.dtypes import check_dtype, dtype_for_device
from emsjax.loading.named import named_config

# Of one array, made one after another. One for each row of an embedding would take minutes.
MOST_PARTS = 64


def random_model(config: str, dtype: str = "auto") -> nnx.Module:
    """A model with random weights on the default device.

    Args:
      config: as for `named_config`.
      dtype: as for `load_model`; "auto" is bfloat16 on an accelerator.

    Raises:
      UserError: there is no such configuration, or `dtype` is unknown.
    """
    check_dtype(dtype)
    shape = named_config(config)
    computed = jnp.dtype(dtype_for_device(dtype, "bfloat16"))
    graphdef, shapes = nnx.split(shape_of_model(shape, computed))
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    made = [_random(key, leaf.shape, computed) for key, leaf in zip(keys, leaves, strict=True)]
    return nnx.merge(graphdef, jax.tree.unflatten(tree, made))


@partial(jax.jit, static_argnums=(1, 2))
def _random(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """Small numbers, one part after another: the random bits take more room than they do."""
    size = -(-shape[0] // MOST_PARTS)
    parts = -(-shape[0] // size)

    def part(key: jax.Array) -> jax.Array:
        return jax.random.normal(key, (size, *shape[1:]), dtype) * jnp.asarray(0.02, dtype)

    made = jax.lax.map(part, jax.random.split(key, parts))
    return made.reshape(parts * size, *shape[1:])[: shape[0]]
