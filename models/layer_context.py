"""What a layer is given besides the hidden states and the cache."""

from typing import NamedTuple, Protocol

import jax

from emsjax.engine.packing import PackedBatch
from emsjax.pallas_kernels.int8_cache import Cache
from emsjax.pallas_kernels.ragged_attention.api import Attend, AttendPacked


class Write(Protocol):
    """`update_kv_cache` without the arguments that are the same in every layer."""

    def __call__(self, cache: Cache, k: jax.Array, v: jax.Array, *, layer: jax.Array) -> Cache:
        """Returns the cache with keys and values [T, K, H] of the rows."""


class LayerContext(NamedTuple):
    """The inputs of a layer besides the hidden states and the cache.

    All layers share everything except `layer`, `stacked`, `window`, `sink_tokens` and `table`.

    Attributes:
      layer: int32[], index of the layer in the cache.
      stacked: int32[], index of the layer in its stack of weights; None if it is in no stack.
      window: sliding window in tokens; None for no window.
      batch: the packed rows.
      angles: cosine and sine of the rotary embedding, see `rotary_angles`; None for a model
        without one.
      query_factor: float32[T, 1, 1], factor on the queries; None for none.
      write: puts the rows' K/V into the cache.
      attend: attention over the caches of this step's slots.
      sink_tokens: the first tokens of a slot, so many of which the window does not hide; None for
        none.
      attend_packed: norms of heads, rotation, `write` and `attend` in one; None if there is no
        kernel for it.
      table: int32[], which table of `angles` is the layer's; None if all layers share one.
    """

    layer: jax.Array
    stacked: jax.Array | None
    window: jax.Array | int | None
    batch: PackedBatch
    angles: tuple[jax.Array, jax.Array] | None
    query_factor: jax.Array | None
    write: Write
    attend: Attend
    sink_tokens: jax.Array | int | None = None
    attend_packed: AttendPacked | None = None
    table: jax.Array | None = None

    @property
    def own_angles(self) -> tuple[jax.Array, jax.Array] | None:
        """Cosine and sine of the layer, float32[T, 1, pairs] each."""
        if self.angles is None or self.table is None:
            return self.angles
        cos, sin = self.angles
        return cos[self.table], sin[self.table]
