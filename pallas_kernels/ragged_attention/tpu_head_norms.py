"""RMS norms of queries and keys in rows of 128 lanes, for the TPU kernel that splits heads."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from emsjax.pallas_kernels.kv_rows import LANES
from emsjax.pallas_kernels.norms import rms_scaled
from emsjax.pallas_kernels.ragged_attention.lane_pieces import LanePieces, lane_of, within


class Group(NamedTuple):
    """Neighbouring lanes that are normalised together.

    Attributes:
      first: the first lane.
      end: the lane after the last one.
    """

    first: int
    end: int


def scales_of(
    groups: Sequence[Group], border: int, queries: LanePieces, keys: LanePieces
) -> list[jax.Array]:
    """Returns the factors of all groups' lanes in pieces float32[rows, 128].

    Args:
      groups: one after the other, from lane 0 on.
      border: the first lane of the keys.
      queries: the factors of a group of queries.
      keys: the factors of a group of keys.
    """

    def of_group(number: int, start: int) -> jax.Array:
        first = groups[number].first
        return (queries if first < border else keys).at(start - first)

    return [joined(groups, start, of_group) for start in range(0, groups[-1].end, LANES)]


def joined(
    groups: Sequence[Group], start: int, of_group: Callable[[int, int], jax.Array]
) -> jax.Array:
    """Joins the 128 lanes from `start` on, of which each group has those from its first one on.

    Args:
      groups: one after the other.
      start: a lane before the last group's end.
      of_group: returns a group's lanes from `start` on, given the group's number and `start`.
    """
    here = [n for n, x in enumerate(groups) if x.first < start + LANES and x.end > start]
    found = of_group(here[0], start)
    for number in here[1:]:
        before = lane_of(found) < groups[number].first - start
        found = jnp.where(before, found, of_group(number, start))
    return found


def normed(
    lanes: LanePieces,
    scales: Sequence[jax.Array],
    groups: Sequence[Group],
    eps: float,
    offset: bool,
    dtype: Any,
) -> LanePieces:
    """Normalises groups of lanes and leaves those after them as they are.

    Args:
      lanes: the rows.
      scales: see `scales_of`.
      groups: one after the other, from lane 0 on.
      eps: see `rms_scaled`.
      offset: see there.
      dtype: to which results are rounded.
    """
    shape = lanes.pieces[0].shape
    squares = [jnp.broadcast_to(_mean_square(lanes, group), shape) for group in groups]
    found = []
    for number, piece in enumerate(lanes.pieces):
        start = number * LANES
        left = groups[-1].end - start
        if left <= 0:
            found.append(piece)
            continue
        square = joined(groups, start, lambda number, _: squares[number])
        normal = rms_scaled(piece, square, scales[number], eps, offset, dtype)
        wide = normal.astype(jnp.float32)
        found.append(wide if left >= LANES else jnp.where(lane_of(piece) < left, wide, piece))
    return LanePieces(found)


def _mean_square(lanes: LanePieces, group: Group) -> jax.Array:
    """Returns the mean of a group's squares, float32[rows, 1]."""
    total = None
    for number in range(group.first // LANES, -(-group.end // LANES)):
        piece, start = lanes.pieces[number], number * LANES
        squares = piece * piece
        if group.first > start or group.end < start + LANES:
            own = within(lane_of(piece), group.first - start, group.end - start)
            squares = jnp.where(own, squares, 0.0)
        total = squares if total is None else total + squares
    assert total is not None, "a group has lanes"
    return total.sum(axis=1, keepdims=True) / (group.end - group.first)
