"""A model of some shape without a checkpoint: for measuring what it costs."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from emsjax.loading.build import shape_of_model
from emsjax.loading.dtypes import check_dtype, dtype_for_device
from emsjax.loading.named import named_config

# Of one array, made one after another. A part for each of the rows of an embedding takes minutes.
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
    parts = max(n for n in range(1, MOST_PARTS + 1) if shape[0] % n == 0)
    part_shape = (shape[0] // parts, *shape[1:])

    def part(key: jax.Array) -> jax.Array:
        return jax.random.normal(key, part_shape, dtype) * jnp.asarray(0.02, dtype)

    return jax.lax.map(part, jax.random.split(key, parts)).reshape(shape)
