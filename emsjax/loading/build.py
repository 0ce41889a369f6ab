"""A model from its configuration and its checkpoint, with no random initialisation."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from emsjax.loading.opened import OpenedModel
from emsjax.loading.weights import Progress, load_params
from emsjax.models.config import DecoderConfig
from emsjax.models.family import Family, WeightMap, rule


def supported() -> frozenset[str]:
    """Model types that can be loaded."""
    from emsjax.models.registry import FAMILIES

    return frozenset(FAMILIES)


def _family(hf_config: Mapping[str, Any]) -> Family:
    from emsjax.models.registry import FAMILIES

    return FAMILIES[hf_config["model_type"]]


def model_config(hf_config: Mapping[str, Any]) -> DecoderConfig:
    """Our configuration of a model.

    Raises:
      UserError: the configuration asks for something the family does not support.
    """
    return _family(hf_config).config(hf_config)


def abstract_model(hf_config: Mapping[str, Any]) -> tuple[Any, nnx.State, WeightMap]:
    """A model's graph definition, the shapes of its parameters, and where they come from.

    Raises:
      UserError: the configuration asks for something the family does not support.
    """
    config = model_config(hf_config)
    graphdef, params = _split(config)
    return graphdef, params, _family(hf_config).weights(config)


def shape_of_model(config: DecoderConfig, dtype: jnp.dtype) -> nnx.Module:
    """A model with the shapes of its weights in `dtype`, but no weights."""
    graphdef, params = _split(config)
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), params)
    return nnx.merge(graphdef, params)


def _split(config: DecoderConfig) -> tuple[Any, nnx.State]:
    """Graph definition and the shapes of the parameters."""
    from emsjax.models.decoder import DecoderLM

    return nnx.split(nnx.eval_shape(lambda: DecoderLM(config, rngs=nnx.Rngs(0))))


def read_weights(
    opened: OpenedModel, dtype: str, progress: Progress | None = None
) -> tuple[Any, nnx.State]:
    """The model's graph definition and its parameters in `dtype`.

    Raises:
      UserError: the configuration is unsupported, or the weights are damaged or do not fit it.
    """
    graphdef, abstract, weight_map = abstract_model(opened.hf_config)
    if opened.own_names:
        weight_map = _own_names(abstract)
    return graphdef, load_params(abstract, weight_map, opened.source, jnp.dtype(dtype), progress)


def _own_names(abstract: nnx.State) -> WeightMap:
    """Each parameter comes whole from the tensor of its own name."""
    paths = [".".join(map(str, path)) for path, _ in nnx.to_flat_state(abstract)]
    return WeightMap({path: rule(path) for path in paths})
