"""Models whose weights are int8 with one scale per output channel."""

from collections.abc import Container

import jax
import jax.numpy as jnp
from flax import nnx

from emsjax.models.family import dotted
from emsjax.pallas_kernels.quantised import Weights, floats

# A quantised parameter's scale is named like the parameter, with this at the end.
SCALE = "_scale"


def quantise_shapes(model: nnx.Module, chosen: Container[str] | None = None) -> None:
    """Makes weights int8 and adds their scales.

    Norms, biases and position embeddings stay as they are.

    Args:
      model: a model whose parameters are `jax.ShapeDtypeStruct`s; it is changed.
      chosen: paths of the parameters to quantise, such as "blocks.mlp.up.kernel"; None for the
        kernels of all products and the token embedding.
    """
    for path, module in list(nnx.iter_modules(model)):
        name = getattr(module, "quantisable", None)
        if name is None or (chosen is not None and dotted((*path, name)) not in chosen):
            continue
        shape = getattr(module, name).shape
        setattr(module, name, nnx.Param(jax.ShapeDtypeStruct(shape, jnp.int8)))
        scale = nnx.Param(jax.ShapeDtypeStruct(shape[:-1], jnp.float32))
        setattr(module, name + SCALE, nnx.data(scale))  # it was None, and so no data


def picked(weights: Weights, rows: jax.typing.ArrayLike) -> Weights:
    """Returns some rows of weights [V, E], quantised if the weights are."""
    # One program to find in the compile cache; indexing takes several.
    return jax.tree.map(lambda array: jnp.take(array, rows, axis=0, mode="clip"), weights)


def picked_floats(weights: Weights, rows: jax.typing.ArrayLike) -> jax.Array:
    """Returns some rows of weights [V, E] as floats."""
    return floats(picked(weights, rows))
