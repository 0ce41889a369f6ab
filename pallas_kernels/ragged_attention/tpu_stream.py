"""The stream of cache blocks from HBM to VMEM, in the TPU kernel for attention."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from emsjax.pallas_kernels.kv_rows import LANES
from emsjax.pallas_kernels.ragged_attention.tiles import TileFacts, Walk, Window, least_position


class Stream(NamedTuple):
    """Copies blocks of the cache from HBM to VMEM."""

    layer: jax.Array  # int32[]
    tiles: TileFacts
    cache: Any  # [L, B, S, R, 128] in HBM
    window: Window | None
    buffers: Any  # [2, parts, block, rows of a part, 128] in VMEM
    arrived: Any  # DMA semaphores, one for each buffer
    piece: int  # tokens
    tree: bool  # whether there are ancestors
    scale: Any = None  # [L, B, S / 128, R, 128] in HBM, of an int8 cache
    scale_buffers: Any = None  # [2, block / 128, R, 128] in VMEM

    @property
    def block(self) -> int:
        """Tokens of a block."""
        return int(self.buffers.shape[2])

    def walk(self, tile: jax.Array) -> Walk:
        """Returns the blocks that any row of the tile sees."""
        end = pl.cdiv(self.tiles.kv_end[tile], self.block)
        if self.window is None:
            return Walk(jnp.zeros((), jnp.int32), end)
        steps = self.window.walk(least_position(self.tiles, tile, self.tree), end, self.block)
        # At most the last block: the walk over a tile's blocks also starts the next tile's copy, so
        # a used tile must take at least one.
        return steps._replace(start=jnp.minimum(steps.start, jnp.maximum(end - 1, 0)))

    def first_block(self, tile: jax.Array) -> jax.Array:
        """Returns the first block that the tile reads."""
        steps = self.walk(tile)
        return steps.block(steps.start)

    def valid(self, tile: jax.Array, block: jax.Array) -> jax.Array:
        """Returns how many tokens of the block are before the tile's end."""
        return jnp.minimum(self.tiles.kv_end[tile] - block * self.block, self.block)

    def copy(self, act: str, tile: jax.Array, block: jax.Array, buffer: jax.Array) -> None:
        """Starts or awaits the copy of a block, whole or in pieces up to the tile's end.

        Args:
          act: "start" or "wait".
          tile: index of the tile.
          block: index of the block in the slot's cache.
          buffer: 0 or 1.
        """
        valid = self.valid(tile, block)
        if self.scale is not None:
            self._copy_scales(act, tile, block, buffer)

        @pl.when(valid == self.block)
        def _whole() -> None:
            self._copy_some(act, tile, block, buffer, 0, self.block)

        @pl.when(valid < self.block)
        def _pieces() -> None:
            def piece(number: jax.Array, _: None) -> None:
                self._copy_some(act, tile, block, buffer, number * self.piece, self.piece)

            jax.lax.fori_loop(0, pl.cdiv(valid, self.piece), piece, None)

    def _copy_some(
        self,
        act: str,
        tile: jax.Array,
        block: jax.Array,
        buffer: jax.Array,
        first: jax.Array | int,
        count: int,
    ) -> None:
        """Starts or awaits the copy of `count` tokens, one part of their rows at a time.

        The kernel later loads one row of every token, at a stride of a part's rows. A strided load
        reaches several tokens at once only if the stride is at most 8, the rows of a register.
        Tokens with more rows are therefore split into parts.
        """
        start = block * self.block + first
        tokens = self.cache.at[self.layer, self.tiles.slot[tile], pl.ds(start, count)]
        _, parts, _, rows, _ = self.buffers.shape
        for part in range(parts):
            source = tokens.at[:, pl.ds(part * rows, rows)]
            target = self.buffers.at[buffer, part, pl.ds(first, count)]
            getattr(pltpu.make_async_copy(source, target, self.arrived.at[buffer]), act)()

    def _copy_scales(self, act: str, tile: jax.Array, block: jax.Array, buffer: jax.Array) -> None:
        """Starts or awaits the copy of a block's scales, always whole: they are few."""
        count = self.block // LANES
        source = self.scale.at[self.layer, self.tiles.slot[tile], pl.ds(block * count, count)]
        target = self.scale_buffers.at[buffer]
        getattr(pltpu.make_async_copy(source, target, self.arrived.at[buffer]), act)()
