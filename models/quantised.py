"""Models whose weights are int8 with one scale per output channel, or 4 bits with one per group."""

from collections.abc import Container, Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from emsjax.models.experts import ExpertLinear
from emsjax.models.family import dotted
from emsjax.models.groups import Groups
from emsjax.models.linear import Linear
from emsjax.pallas_kernels.quantised import OFFSETS, ORDER, SCALE, SCALES, Weights, floats


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


def group_shapes(model: nnx.Module, groups: Mapping[str, Groups]) -> None:
    """Makes kernels 4-bit weights in groups, and adds their scales, offsets and orders.

    Args:
      model: a model whose parameters are `jax.ShapeDtypeStruct`s; it is changed.
      groups: the groups of each kernel to change, one of `in_groups`, by its path.
    """
    for path, module in in_groups(model).items():
        if path not in groups:
            continue
        name, (size, offsets, order) = path.rpartition(".")[2], groups[path]
        *stack, num_out, num_in = getattr(module, name).shape
        parts = jax.ShapeDtypeStruct((*stack, num_in // size, num_out), jnp.float32)
        setattr(module, name, nnx.Param(jax.ShapeDtypeStruct((*stack, num_out, num_in), jnp.int4)))
        setattr(module, name + SCALES, nnx.data(nnx.Param(parts)))
        if offsets:
            setattr(module, name + OFFSETS, nnx.data(nnx.Param(parts)))
        if order is not None:
            columns = jax.ShapeDtypeStruct((*stack, num_in), jnp.int32)
            setattr(module, name + ORDER, nnx.data(nnx.Param(columns)))


def in_groups(model: nnx.Module) -> dict[str, nnx.Module]:
    """Returns the modules whose kernels may be in 4 bits, the products of layers.

    The keys are the paths of their kernels.
    """
    return {
        dotted((*path, "kernel")): module
        for path, module in nnx.iter_modules(model)
        if isinstance(module, Linear | ExpertLinear) and path[:1] == ("blocks",)
    }


def picked(weights: Weights, rows: jax.typing.ArrayLike) -> Weights:
    """Returns some rows of weights [V, E], quantised if the weights are."""
    # One program to find in the compile cache; indexing takes several.
    return jax.tree.map(lambda array: jnp.take(array, rows, axis=0, mode="clip"), weights)


def picked_floats(weights: Weights, rows: jax.typing.ArrayLike) -> jax.Array:
    """Returns some rows of weights [V, E] as floats."""
    return floats(picked(weights, rows))
