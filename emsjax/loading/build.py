"""A model from its configuration and its checkpoint, with no random initialisation."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from emsjax.loading.opened import OpenedModel
from emsjax.loading.weights import Progress, load_params
from emsjax.models.family import WeightMap, rule


def supported() -> frozenset[str]:
    """Model types that can be loaded."""
    from emsjax.models.registry import FAMILIES

    return frozenset(FAMILIES)


def abstract_model(hf_config: Mapping[str, Any]) -> tuple[Any, nnx.State, WeightMap]:
    """A model's graph definition, the shapes of its parameters, and where they come from.

    Raises:
      UserError: the configuration asks for something the family does not support.
    """
    from emsjax.models.decoder import DecoderLM
    from emsjax.models.registry import FAMILIES

    family = FAMILIES[hf_config["model_type"]]
    config = family.config(hf_config)
    model = nnx.eval_shape(lambda: DecoderLM(config, rngs=nnx.Rngs(0)))
    graphdef, params = nnx.split(model)
    return graphdef, params, family.weights(config)


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
