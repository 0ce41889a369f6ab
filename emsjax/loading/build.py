"""Builds a model from its configuration and checkpoint, without random initialisation."""

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from emsjax.engine.devices import ONE, Devices
from emsjax.engine.sizes import Sizes
from emsjax.errors import UserError
from emsjax.loading.families import family, model_config
from emsjax.loading.grouped import order_of
from emsjax.loading.kept import check_kept
from emsjax.loading.opened import OpenedModel
from emsjax.loading.parameters import Parameter, plan_parameters
from emsjax.loading.parts import Division
from emsjax.loading.sources.source import TensorSource
from emsjax.loading.weights import Progress, load_params
from emsjax.models.config import DecoderConfig
from emsjax.models.division import possible_shares, share_of
from emsjax.models.family import WeightMap, dotted, rule
from emsjax.models.groups import Groups
from emsjax.models.quantised import group_shapes, in_groups, quantise_shapes
from emsjax.models.sizes import planned_group
from emsjax.pallas_kernels.kv_rows import LANES

# Inputs that share a scale. With fewer, scales take more memory than they save.
_SMALLEST_GROUP = 16


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
      quantize: "int8" for int8 weights, "int4" for layers in 4 bits as in files, or None.
      kv_dtype: "int8" for an int8 K/V cache, or None.
      devices: the devices that share the model, where its parameters lie.

    Raises:
      ValueError: so many devices cannot share it.
    """
    graphdef, params = _split(
        share_of(config, devices.number, ordered_sums=devices.ordered_sums), dtype
    )
    model = nnx.merge(graphdef, _of_dtype(params, dtype))
    if quantize == "int8":
        quantise_shapes(model)
    elif quantize == "int4":
        group_shapes(model, {path: Groups(group) for path, group in _planned_groups(model)})
    model.kv_dtype = kv_dtype
    if devices.number > 1:
        graphdef, params = nnx.split(model)
        model = nnx.merge(graphdef, Division(devices, config).abstract(params))
    return model


def _planned_groups(model: nnx.Module) -> Iterator[tuple[str, int]]:
    """Yields the kernels that a file has in 4 bits, and the sizes of their groups."""
    for path, module in in_groups(model).items():
        yield path, planned_group(module.kernel.shape[-1])


def _split(config: DecoderConfig, dtype: jax.typing.DTypeLike) -> tuple[Any, nnx.State]:
    """Returns the graph definition of a model that computes in `dtype`, and parameter shapes."""
    from emsjax.models.decoder import DecoderLM

    return nnx.split(nnx.eval_shape(lambda: DecoderLM(config, rngs=nnx.Rngs(0), dtype=dtype)))


def _of_dtype(params: nnx.State, dtype: jax.typing.DTypeLike) -> nnx.State:
    """Returns the same shapes with another type."""
    typed: nnx.State = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), params)
    return typed


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

    Weights are int8 if `quantize` says so. Otherwise they are int8 or 4 bits if the checkpoint has
    them in int8 with one scale per row, or in 4 bits with scales per group (on a CPU, or if no
    kernel suits them, only if `quantize` is "int4"), unless `quantize` is "none". All other
    parameters have `dtype`.

    Args:
      opened: the model.
      dtype: type of the activations, and of the parameters that are not quantised.
      progress: called with (tensors read, total tensors).
      quantize: "int8" to quantise the weights, "int4" to keep those in 4 bits, "none" for floats,
        or None to keep what the checkpoint has, but 4 bits not on a CPU.
      devices: the devices to put the parameters on.
      divided: whether each of them gets its part; if not, all get all of them.

    Raises:
      UserError: the configuration is unsupported, the weights are damaged or do not match it,
        they are in int8 already or have no 4 bits to keep and `quantize` is given, or so many
        devices cannot share them.
    """
    plan = _plan(opened, dtype, quantize, devices, divided=divided)
    params = load_params(
        plan.whole, plan.parameters, opened.source, jnp.dtype(dtype), plan.division, progress
    )
    return plan.graphdef, params


def planned_sizes(
    opened: OpenedModel,
    dtype: str,
    quantize: str | None = None,
    kv_dtype: str | None = None,
    devices: Devices = ONE,
    *,
    divided: bool = True,
) -> Sizes:
    """Returns the sizes that a model will have on each device, without reading its weights.

    Args:
      opened: the model.
      dtype: as for `read_weights`, as all else but `kv_dtype`.
      quantize: which weights are quantised.
      kv_dtype: "int8" for an int8 K/V cache, or None.
      devices: the devices.
      divided: whether each of them gets its part.

    Raises:
      UserError: as for `read_weights`.
    """
    plan = _plan(opened, dtype, quantize, devices, divided=divided)
    model = nnx.merge(plan.graphdef, plan.share)
    model.kv_dtype = kv_dtype
    sizes: Sizes = model.sizes
    return sizes


class _Plan(NamedTuple):
    """What a model will be, before its weights are read.

    Attributes:
      graphdef: of the model, or of each device's part of it.
      share: the shapes of the parameters that each device has.
      whole: those of all devices' parameters together.
      parameters: where they come from.
      division: how they are divided.
    """

    graphdef: Any
    share: nnx.State
    whole: nnx.State
    parameters: Mapping[str, Parameter]
    division: Division


def _plan(
    opened: OpenedModel, dtype: str, quantize: str | None, devices: Devices, *, divided: bool
) -> _Plan:
    """Finds out what each of a model's parameters will be, see `read_weights`."""
    graphdef, abstract, weight_map = abstract_model(opened.hf_config, dtype)
    if opened.own_names:
        weight_map = _own_names(abstract)
    shapes = {dotted(path): tuple(leaf.shape) for path, leaf in nnx.to_flat_state(abstract)}
    parameters = plan_parameters(shapes, weight_map, opened.source)
    if quantize == "int8" and opened.source.int8:
        raise UserError(f"{opened.name} has int8 weights already; load it without quantising it.")
    whole = model_config(opened.hf_config)
    division = Division(devices, whole, divided)
    kept = _kept(quantize, graphdef, abstract, parameters, opened.source, division)
    if quantize == "int4":
        check_kept(opened, parameters, kept.int4)
    graphdef, abstract = _quantised(graphdef, _of_dtype(abstract, dtype), kept)
    share = abstract
    if divided and devices.number > 1:
        graphdef, share = _split(share_of_each(whole, devices, opened.name), dtype)
        graphdef, share = _quantised(graphdef, _of_dtype(share, dtype), kept)
    return _Plan(graphdef, share, abstract, parameters, division)


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


class _Kept(NamedTuple):
    """The parameters that are not floats.

    Attributes:
      int8: those in int8; None for all that can be.
      int4: those in 4 bits, and their groups.
    """

    int8: Collection[str] | None
    int4: Mapping[str, Groups]


def _kept(
    quantize: str | None,
    graphdef: Any,
    abstract: nnx.State,
    parameters: Mapping[str, Parameter],
    source: TensorSource,
    division: Division,
) -> _Kept:
    """Returns the parameters that are not floats."""
    if quantize in ("int8", "none"):
        return _Kept(None if quantize == "int8" else (), {})
    if quantize is None and _floats_are_faster():
        return _Kept(_held_in_int8(parameters, source.int8), {})
    # A TPU's kernel takes whole rows of lanes. Without one, products take longer than with floats.
    # What an option asks for is kept even if no kernel suits it.
    multiple = 1 if quantize == "int4" else LANES
    int4 = {}
    for path in in_groups(nnx.merge(graphdef, abstract)) if source.int4 else ():
        if (groups := _groups(path, parameters[path], source.int4, division, multiple)) is not None:
            int4[path] = groups
    return _Kept(_held_in_int8(parameters, source.int8), int4)


def _floats_are_faster() -> bool:
    """Returns whether the device multiplies with floats faster than with 4 bits."""
    return jax.default_backend() == "cpu"


def _groups(
    path: str,
    parameter: Parameter,
    int4: Mapping[str, Groups],
    division: Division,
    multiple: int,
) -> Groups | None:
    """Returns the groups of a parameter that is kept in 4 bits, or None if it is not.

    Tensors of other groups than their neighbours' get groups that suit all of them, and so do those
    whose groups devices would divide.

    Args:
      path: the parameter's path.
      parameter: the parameter.
      int4: the tensors in 4 bits, and their groups.
      division: the devices.
      multiple: what divides a device's inputs.
    """
    if not (parameter.tensors <= int4.keys() and parameter.rule.joins):
        return None
    found = [int4[name] for name in parameter.tensors]
    cut, num_in = division.cut(path, parameter.shape), parameter.shape[-1]
    share = num_in if cut is None or cut.axis != -1 else cut.size(division.devices.number)
    size = math.gcd(share, *(groups.size for groups in found))
    if size < _SMALLEST_GROUP or share % multiple:
        return None
    orders = [{int4[name].order for name in names} for names in parameter.pieces]
    ordered = any(each != {None} for each in orders)
    # A product takes its inputs in one order. Tensors that were quantised together have the same,
    # and devices that divide the inputs would lack those that others have. Experts take inputs as
    # they are.
    experts = len(parameter.shape) > 3
    if ordered and (experts or share != num_in or any(len(each) > 1 for each in orders)):
        return None
    columns = (order_of(int4[names[0]], num_in).tobytes() for names in parameter.pieces)
    order = b"".join(columns) if ordered else None
    return Groups(size, any(each.offsets for each in found), order)


def _quantised(graphdef: Any, abstract: nnx.State, kept: _Kept) -> tuple[Any, nnx.State]:
    """Returns both with parameters in int8 or 4 bits."""
    if kept.int8 is not None and not kept.int8 and not kept.int4:
        return graphdef, abstract
    model = nnx.merge(graphdef, abstract)
    quantise_shapes(model, kept.int8)
    group_shapes(model, kept.int4)
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
