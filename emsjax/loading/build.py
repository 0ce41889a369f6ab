"""Builds a model from its configuration and checkpoint, without random initialisation."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from emsjax.engine.devices import ONE, Devices
from emsjax.errors import UserError
from emsjax.loading.families import family, model_config
from emsjax.loading.opened import OpenedModel
from emsjax.loading.parameters import Parameter, plan_parameters
from emsjax.loading.parts import Division
from emsjax.loading.weights import Progress, load_params
from emsjax.models.config import DecoderConfig
from emsjax.models.division import possible_shares, share_of
from emsjax.models.family import WeightMap, dotted, rule
from emsjax.models.quantised import quantise_shapes


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


def shape_of_model(
    config: DecoderConfig,
    dtype: jnp.dtype,
    quantize: str | None = None,
    kv_dtype: str | None = None,
    devices: Devices = ONE,
) -> nnx.Module:
    """Returns a model whose parameters are shapes without any values.

    Args:
      config: the configuration.
      dtype: type of the activations, and of the parameters that are not quantised.
      quantize: "int8" for int8 weights, or None.
      kv_dtype: "int8" for an int8 K/V cache, or None.
      devices: the devices that share the model, where its parameters lie.

    Raises:
      ValueError: so many devices cannot share it.
    """
    graphdef, params = _split(
        share_of(config, devices.number, ordered_sums=devices.ordered_sums), dtype
    )
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), params)
    model = nnx.merge(graphdef, params)
    if quantize is not None:
        quantise_shapes(model)
    model.kv_dtype = kv_dtype
    if devices.number > 1:
        graphdef, params = nnx.split(model)
        model = nnx.merge(graphdef, Division(devices, config).abstract(params))
    return model


def _split(config: DecoderConfig, dtype: jax.typing.DTypeLike) -> tuple[Any, nnx.State]:
    """Returns the graph definition of a model that computes in `dtype`, and parameter shapes."""
    from emsjax.models.decoder import DecoderLM

    return nnx.split(nnx.eval_shape(lambda: DecoderLM(config, rngs=nnx.Rngs(0), dtype=dtype)))


def read_weights(
    opened: OpenedModel,
    dtype: str,
    progress: Progress | None = None,
    quantize: str | None = None,
    devices: Devices = ONE,
    *,
    divided: bool = True,
) -> tuple[Any, nnx.State]:
    """Returns the model's graph definition and its parameters.

    If devices share the model, the definition is that of each device's part.

    Weights are int8 if `quantize` says so, or if the checkpoint has them in int8 with one scale per
    row. All other parameters have `dtype`.

    Args:
      opened: the model.
      dtype: type of the activations, and of the parameters that are not quantised.
      progress: called with (tensors read, total tensors).
      quantize: "int8" to quantise the weights, or None.
      devices: the devices to put the parameters on.
      divided: whether each of them gets its part; if not, all get all of them.

    Raises:
      UserError: the configuration is unsupported, the weights are damaged or do not match it,
        they are in int8 already and `quantize` is given, or so many devices cannot share them.
    """
    graphdef, abstract, weight_map = abstract_model(opened.hf_config, dtype)
    if opened.own_names:
        weight_map = _own_names(abstract)
    shapes = {dotted(path): tuple(leaf.shape) for path, leaf in nnx.to_flat_state(abstract)}
    parameters = plan_parameters(shapes, weight_map, opened.source)
    if quantize is not None and opened.source.int8:
        raise UserError(f"{opened.name} has int8 weights already; load it without quantising it.")
    chosen = None if quantize is not None else _held_in_int8(parameters, opened.source.int8)
    graphdef, abstract = _with_int8(graphdef, abstract, chosen)
    whole = model_config(opened.hf_config)
    if divided and devices.number > 1:
        own = share_of_each(whole, devices, opened.name)
        graphdef, _ = _with_int8(*_split(own, dtype), chosen)
    division = Division(devices, whole, divided)
    params = load_params(abstract, parameters, opened.source, jnp.dtype(dtype), division, progress)
    return graphdef, params


def share_of_each(config: DecoderConfig, devices: Devices, name: str) -> DecoderConfig:
    """Returns the configuration of each of the devices that share a model.

    Args:
      config: of the whole model.
      devices: the devices.
      name: the model's name for messages.

    Raises:
      UserError: so many devices cannot share it.
    """
    try:
        return share_of(config, devices.number, ordered_sums=devices.ordered_sums)
    except ValueError as problem:
        *others, last = map(str, possible_shares(config))
        possible = f"{', '.join(others)} or {last}" if others else last
        raise UserError(
            f"tensor_parallel_size={devices.number} does not divide {name}, which has {problem}; "
            f"give {possible}"
        ) from None


def _with_int8(
    graphdef: Any, abstract: nnx.State, chosen: frozenset[str] | None
) -> tuple[Any, nnx.State]:
    """Returns both with the chosen parameters in int8; None chooses all that can be."""
    if chosen is not None and not chosen:
        return graphdef, abstract
    model = nnx.merge(graphdef, abstract)
    quantise_shapes(model, chosen)
    return nnx.split(model)


def _held_in_int8(parameters: Mapping[str, Parameter], int8: frozenset[str]) -> frozenset[str]:
    """Returns the parameters that can be kept in int8: those whose tensors all are, and stay whole.

    A parameter of which only some tensors are in int8 is computed from their values.
    """
    return frozenset(
        path for path, each in parameters.items() if each.tensors <= int8 and each.rule.joins
    )


def _own_names(abstract: nnx.State) -> WeightMap:
    """Returns a weight map that reads each parameter from the tensor of the same name."""
    paths = [dotted(path) for path, _ in nnx.to_flat_state(abstract)]
    return WeightMap({path: rule(path) for path in paths})
