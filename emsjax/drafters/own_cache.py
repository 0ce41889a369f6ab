"""What drafters have in common that keep K/V of every token of which the target has K/V."""

from typing import Any, Protocol

import jax
import jax.numpy as jnp

from emsjax.engine.state import copy_prefix


class CachedHead(Protocol):
    """A network with a K/V cache."""

    def cache_spec(self, num_slots: int, capacity: int) -> Any:
        """Returns the shape and type of the head's K/V cache."""

    def move_kv(self, cache: Any, sources: jax.Array, targets: jax.Array, moved: jax.Array) -> Any:
        """Returns the cache with some K/V moved."""


class OwnCache:
    """Base class of drafters whose state is such a cache, at the same places as the target's."""

    observing = True

    def built(self) -> CachedHead:
        """Returns the network with the cache."""
        raise NotImplementedError

    def init(self, num_slots: int, capacity: int) -> Any:
        """Returns an empty cache."""
        return jax.tree.map(jnp.zeros_like, self.built().cache_spec(num_slots, capacity))

    def share(
        self, drafter_state: Any, slot: jax.Array, source: jax.Array, length: jax.Array
    ) -> Any:
        """Returns the cache after a new request, with the beginning that it shares copied."""
        copied = jnp.where(source == slot, 0, length)
        return copy_prefix(drafter_state, source, slot, copied)

    def move_kv(
        self, drafter_state: Any, sources: jax.Array, targets: jax.Array, moved: jax.Array
    ) -> Any:
        """Returns the cache with some K/V moved like the target's."""
        return self.built().move_kv(drafter_state, sources, targets, moved)
