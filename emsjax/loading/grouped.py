"""Reads a parameter in 4 bits, with scales, offsets and an order of inputs, a part at a time."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emsjax.loading.parameters import Parameter
from emsjax.loading.parts import Division
from emsjax.loading.sources.buffers import aligned_empty
from emsjax.loading.sources.int4 import Int4, regrouped
from emsjax.models.groups import Groups
from emsjax.pallas_kernels.quantised import OFFSETS, ORDER, SCALES

# What the names of a parameter's companions have after its own.
ENDS = (SCALES, OFFSETS, ORDER)


def read_grouped(
    name: str,
    parameter: Parameter,
    read: Callable[[str], tuple[Int4, Groups]],
    groups: int,
    ends: Sequence[str],
    division: Division,
) -> dict[str, jax.Array]:
    """Reads a parameter in 4 bits and its companions, and puts them on their devices.

    Args:
      name: the parameter's path.
      parameter: the parameter.
      read: returns a tensor, and its groups.
      groups: the number of groups of all inputs.
      ends: those of `ENDS` that it has.
      division: the devices.
    """
    *stack, num_out, num_in = parameter.shape
    of_groups = (*stack, groups, num_out)
    kinds: dict[str, tuple[Any, Sequence[int]]] = {
        "": (jnp.int4, parameter.shape),
        SCALES: (np.float32, of_groups),
        OFFSETS: (np.float32, of_groups),
        ORDER: (np.int32, (*stack, num_in)),
    }
    cuts = {end: division.cut(name + end, kinds[end][1]) for end in ("", *ends)}
    held: dict[str, list[jax.Array]] = {end: [] for end in cuts}
    for part in division.parts(name, parameter.shape):
        parts = {end: replace(part, cut=cut) for end, cut in cuts.items()}
        arrays = {}
        for end, each in parts.items():
            dtype, shape = kinds[end]
            arrays[end] = aligned_empty(each.shape(shape), dtype)
        for place, names in enumerate(parameter.pieces):
            tensors = [read(tensor) for tensor in names]
            for end, array in arrays.items():
                piece = array.reshape(-1, *array.shape[parameter.rule.stacked_axes :])[place]
                parts[end].copy(_joined(end, tensors, num_in, num_in // groups), piece)
        for end, array in arrays.items():
            if cuts[end] is not None or not held[end]:  # all devices may have the same
                held[end].append(division.put(array, parts[end]))
    return {name + end: division.join(arrays, cuts[end]) for end, arrays in held.items()}


def _joined(end: str, tensors: Sequence[tuple[Int4, Groups]], num_in: int, size: int) -> np.ndarray:
    """Joins what tensors have of one kind: values [out, in], their order, or [in / size, out]."""
    if end == ORDER:
        return order_of(tensors[0][1], num_in)
    if not end:
        return np.concatenate([each.values for each, _ in tensors], axis=-2)
    parts = [
        regrouped(each.scales if end == SCALES else each.offsets, each.scales, num_in, size)
        for each, _ in tensors
    ]
    return np.concatenate(parts, axis=-1)


def order_of(groups: Groups, num_in: int) -> np.ndarray:
    """Returns the input of each column, int32[in], or int32[L, in] for a stack of layers."""
    if groups.order is None:
        return np.arange(num_in, dtype=np.int32)
    order = np.frombuffer(groups.order, np.int32)
    return order if len(order) == num_in else order.reshape(-1, num_in)
