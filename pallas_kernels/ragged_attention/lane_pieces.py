"""Rows in pieces of 128 lanes, of which TPU kernels take any 128 neighbours."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from emsjax.pallas_kernels.kv_rows import LANES


class LanePieces:
    """Some rows of a wide array in pieces of 128 lanes, float32[rows, 128] each."""

    def __init__(self, pieces: Sequence[jax.Array]):
        self.pieces = pieces
        self._rolled: dict[tuple[int, int], jax.Array] = {}

    def at(self, start: int) -> jax.Array:
        """Returns the 128 lanes from `start` on. Lanes outside of the array hold anything."""
        first, lane = divmod(start, LANES)
        low, high = self._piece(first, lane), self._piece(first + 1, lane)
        return low if lane == 0 else jnp.where(lane_of(low) < LANES - lane, low, high)

    def _piece(self, number: int, lane: int) -> jax.Array:
        """Returns a piece, rolled so that `lane` comes first."""
        number = min(max(number, 0), len(self.pieces) - 1)
        if lane == 0:
            return self.pieces[number]
        if (number, lane) not in self._rolled:
            self._rolled[number, lane] = pltpu.roll(self.pieces[number], LANES - lane, 1)
        return self._rolled[number, lane]


def lane_of(x: jax.Array) -> jax.Array:
    """Returns the lane of each number of x [rows, 128]."""
    return jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)


def within(lane: jax.Array, first: int, end: int) -> jax.Array:
    """Returns which lanes are in a range, which may begin or end outside of the 128."""
    return (lane >= first) & (lane < end)
