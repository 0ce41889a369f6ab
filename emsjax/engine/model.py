"""What the engine needs of a model, and nothing about any family."""

from typing import Protocol

import jax
import jax.numpy as jnp

from emsjax.engine.packing import PackedBatch


class Model(Protocol):
    """A causal language model over packed rows; also a pytree of its weights (flax.nnx)."""

    @property
    def dtype(self) -> jnp.dtype:
        """Type of weights and activations."""

    @property
    def vocab_size(self) -> int:
        """V."""

    @property
    def max_positions(self) -> int:
        """The longest sequence the model was made for, in tokens."""

    def cache_spec(self, num_slots: int, capacity: int) -> jax.ShapeDtypeStruct:
        """Shape and type of the K/V cache for B slots of S tokens."""

    def __call__(
        self, batch: PackedBatch, cache: jax.Array, *, max_q_len: int
    ) -> tuple[jax.Array, jax.Array]:
        """Hidden states [T, D] of the packed rows, and the cache with their K/V written."""

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Hidden states [W, D] to float32 logits [W, V]."""
