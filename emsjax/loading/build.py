"""Builds a model from its configuration and checkpoint, without random initialisation."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from emsjax.loading.families import family, model_config
from emsjax.loading.opened import OpenedModel
from emsjax.loading.weights import Progress, load_params
from emsjax.models.config import DecoderConfig
from emsjax.models.family import WeightMap, dotted, rule


def abstract_model(
    hf_config: Mapping[str, Any], dtype: str = "float32"
) -> tuple[Any, nnx.State, WeightMap]:
    """Returns a model's graph definition, parameter shapes and weight map.

    Args:
      hf_config: the Hugging Face configuration.
      dtype: type of the activations.

    Raises:
      UserError: the configuration uses a feature that the family does not support.
    """
    config = model_config(hf_config)
    graphdef, params = _split(config, dtype)
    return graphdef, params, family(hf_config).weights(config)


def shape_of_model(config: DecoderConfig, dtype: jnp.dtype) -> nnx.Module:
    """Returns a model of this dtype whose parameters are shapes in it, without any values."""
    graphdef, params = _split(config, dtype)
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), params)
    return nnx.merge(graphdef, params)


def _split(config: DecoderConfig, dtype: jax.typing.DTypeLike) -> tuple[Any, nnx.State]:
    """Returns the graph definition of a model that computes in `dtype`, and parameter shapes."""
    from emsjax.models.decoder import DecoderLM

    return nnx.split(nnx.eval_shape(lambda: DecoderLM(config, rngs=nnx.Rngs(0), dtype=dtype)))


def read_weights(
    opened: OpenedModel, dtype: str, progress: Progress | None = None
) -> tuple[Any, nnx.State]:
    """Returns the model's graph definition and its parameters in `dtype`.

    Raises:
      UserError: the configuration is unsupported, or the weights are damaged or do not match it.
    """
    graphdef, abstract, weight_map = abstract_model(opened.hf_config, dtype)
    if opened.own_names:
        weight_map = _own_names(abstract)
    return graphdef, load_params(abstract, weight_map, opened.source, jnp.dtype(dtype), progress)


def _own_names(abstract: nnx.State) -> WeightMap:
    """Returns a weight map that reads each parameter from the tensor of the same name."""
    paths = [dotted(path) for path, _ in nnx.to_flat_state(abstract)]
    return WeightMap({path: rule(path) for path in paths})
