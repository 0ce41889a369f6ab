"""Quantises the keys and values of rows of 128 lanes, for the TPU kernel that splits heads."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from emsjax.pallas_kernels.int8_cache import scale_of_largest
from emsjax.pallas_kernels.kv_rows import LANES
from emsjax.pallas_kernels.ragged_attention.lane_pieces import lane_of, within
from emsjax.pallas_kernels.ragged_attention.tpu_head_norms import Group, joined


def quantised(
    pieces: Sequence[jax.Array], groups: Sequence[Group]
) -> tuple[list[jax.Array], jax.Array]:
    """Quantises groups of lanes as `int8_cache.quantise` does.

    Args:
      pieces: of the lanes, float32[rows, 128] each, with zeros after the last group.
      groups: one after the other, from lane 0 on; at most 128.

    Returns:
      The whole numbers in pieces of float32, and the scales float32[rows, 128], a lane for each
      group.
    """
    shape = pieces[0].shape
    scales, finer = jnp.zeros(shape, jnp.float32), []
    for number, group in enumerate(groups):
        scale, reciprocal = scale_of_largest(_largest(pieces, group))
        finer.append(jnp.broadcast_to(reciprocal, shape))
        scales = jnp.where(lane_of(scales) == number, scale, scales)
    found = []
    for number, piece in enumerate(pieces):
        start = number * LANES
        if start >= groups[-1].end:
            found.append(piece)
            continue
        factor = joined(groups, start, lambda group, _: finer[group])
        found.append(jnp.round(jnp.where(factor > 0, piece * factor, 0.0)))
    return found, scales


def turn(scales: Any, across: Any) -> None:
    """Writes the scales of rows [T, 128] as [T / 128, heads, 128], with rows along the lanes."""
    for number in range(across.shape[0]):
        of_rows = scales[number * LANES : (number + 1) * LANES]
        across[number] = of_rows.T[: across.shape[1]]


def _largest(pieces: Sequence[jax.Array], group: Group) -> jax.Array:
    """Returns the largest magnitude of a group's numbers, float32[rows, 1]; infinity for NaN."""
    found = None
    for number in range(group.first // LANES, -(-group.end // LANES)):
        piece, start = pieces[number], number * LANES
        size = jnp.abs(piece)
        size = jnp.where(size < jnp.inf, size, jnp.inf)
        if group.first > start or group.end < start + LANES:
            own = within(lane_of(piece), group.first - start, group.end - start)
            size = jnp.where(own, size, 0.0)
        found = size if found is None else jnp.maximum(found, size)
    assert found is not None, "a group has lanes"
    return found.max(axis=1, keepdims=True)
