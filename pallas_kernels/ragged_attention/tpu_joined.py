"""Joins the results of tiles to packed rows, in the TPU kernel for attention.

XLA takes up to seven operations a layer for this, each of which costs a TPU more than a
microsecond. All rows lie in VMEM until the last tile is done, because a tile's first row is any.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from emsjax.pallas_kernels.kv_rows import LANES
from emsjax.pallas_kernels.ragged_attention.lane_pieces import LanePieces, lane_of, within
from emsjax.pallas_kernels.ragged_attention.lanes import places
from emsjax.pallas_kernels.ragged_attention.tpu_block import Options


class Joined(NamedTuple):
    """The packed rows, see `QueryTiles`."""

    first_row: Any  # int32[tiles]
    num_rows: Any  # int32[tiles]
    rows: Any  # float32[pieces, more than T, 128] in VMEM, in pieces of 128 lanes

    @classmethod
    def scratch(cls, num_rows: int, options: Options) -> Any:
        """Returns the shape to allocate in VMEM, with room for the last tile's unused rows."""
        pieces = pl.cdiv(options.num_heads * options.head_dim, LANES)
        return pltpu.VMEM((pieces, num_rows + options.blocks.q, LANES), jnp.float32)

    def begin(self) -> None:
        """Writes zeros, which unused rows keep."""
        self.rows[...] = jnp.zeros_like(self.rows)

    def add(self, tile: jax.Array, out: Any, options: Options) -> None:
        """Writes a tile's rows, and zeros to as many as it has fewer.

        Tiles lie in the order of their rows, so later tiles write over these zeros.

        Args:
          tile: which tile.
          out: its results, float32[K, M, W].
          options: static arguments of the call.
        """
        height, head_dim = options.blocks.q, options.head_dim
        heads_of_key = options.num_heads // options.num_kv_heads
        _, values = places(options.num_kv_heads, head_dim)
        # An unused tile begins anywhere past the used rows.
        first_row = jnp.minimum(self.first_row[tile], self.rows.shape[1] - height)
        row = jax.lax.broadcasted_iota(jnp.int32, (height, LANES), 0)
        for number in range(self.rows.shape[0]):
            start, found = number * LANES, jnp.zeros((height, LANES), jnp.float32)
            end = min(-(-(start + LANES) // head_dim), options.num_heads)
            for head in range(start // head_dim, end):
                key, place = divmod(head, heads_of_key)
                # The compiler cannot cut lanes from a view of fewer rows than a register has.
                mine = slice(place * height, (place + 1) * height)
                lanes = range(0, out.shape[2], LANES)
                pieces = [out[key, mine, lane : lane + LANES] for lane in lanes]
                first = head * head_dim - start
                own = LanePieces(pieces).at(values[key].lane - first)
                found = jnp.where(within(lane_of(own), first, first + head_dim), own, found)
            there = pl.ds(first_row, height)
            self.rows[number, there] = jnp.where(row < self.num_rows[tile], found, 0.0)

    def finish(self, out: Any) -> None:
        """Writes all rows to `out` [T, N * H]."""
        num_rows, width = out.shape
        for number in range(self.rows.shape[0]):
            lanes = slice(number * LANES, min((number + 1) * LANES, width))
            rows = self.rows[number, :num_rows, : lanes.stop - lanes.start]
            out[:, lanes] = rows.astype(out.dtype)
