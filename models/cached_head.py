"""What draft heads with layers and K/V of their own have in common."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from emsjax.models.config import DecoderConfig
from emsjax.models.context import cache_spec
from emsjax.models.linear import Linear
from emsjax.pallas_kernels.cache_update.api import move_kv
from emsjax.pallas_kernels.int8_cache import Cache


class CachedHead(nnx.Module):
    """Base class of these heads."""

    def __init__(
        self,
        layers: DecoderConfig,
        num_read: int,
        *,
        bias: bool,
        rngs: nnx.Rngs,
        dtype: jax.typing.DTypeLike,
    ):
        """Makes the map from what the head reads to its states.

        Args:
          layers: the sizes of its layers. D is the width of its states.
          num_read: width of what it reads.
          bias: whether the map has a bias.
          rngs: for the weights, which are float32 until a checkpoint replaces them.
          dtype: type of the activations.
        """
        self._sizes = layers
        self.dtype = jnp.dtype(dtype)
        self.fc = Linear(num_read, layers.hidden_size, bias=bias, rngs=rngs)

    def cache_spec(self, num_slots: int, capacity: int) -> Any:
        """Returns the shape and type of the head's K/V cache for B slots of S tokens."""
        return cache_spec(self._sizes, self.dtype, num_slots, capacity)

    def move_kv(
        self, cache: Cache, sources: jax.Array, targets: jax.Array, moved: jax.Array
    ) -> Cache:
        """Moves the K/V of tokens within their slots; see `engine.model.Model.move_kv`."""
        return move_kv(cache, sources, targets, moved)
