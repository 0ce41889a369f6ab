"""The model interface: everything the rest of emsjax uses, independent of the model family."""

from typing import Any, Protocol

import jax
import jax.numpy as jnp

from emsjax.engine.packing import PackedBatch
from emsjax.engine.sizes import Sizes


class Model(Protocol):
    """A causal language model over packed rows; also a pytree of its weights (flax.nnx)."""

    @property
    def dtype(self) -> jnp.dtype:
        """Type of the activations; weights may be stored in another type."""

    @property
    def vocab_size(self) -> int:
        """V, the number of entries in the vocabulary."""

    @property
    def max_positions(self) -> int:
        """The longest sequence the model was made for, in tokens."""

    @property
    def windows(self) -> tuple[int, ...]:
        """Sliding window of each layer in tokens; 0 for no window, empty if no layer has one."""

    @property
    def intermediate_size(self) -> int:
        """Width of the feed-forward layer, and by default of a draft trained for this model."""

    @property
    def embedding_kernel(self) -> Any:
        """The token embedding [V, E], an array or quantised."""

    @property
    def output_kernel(self) -> Any:
        """The matrix that turns hidden states into logits, [V, E]; the embedding if tied."""

    @property
    def sizes(self) -> Sizes:
        """The bytes and operations of a step, see `Sizes`."""

    def cache_spec(self, num_slots: int, capacity: int) -> Any:
        """Returns the shape and type of the K/V cache for B slots of S tokens.

        It may consist of several arrays [L, B, ...], but has one `shape` that begins [L, B, S], and
        one `dtype`.
        """

    def __call__(self, batch: PackedBatch, cache: Any, *, max_q_len: int) -> tuple[jax.Array, Any]:
        """Returns the hidden states [T, E] of the packed rows, and the cache with their K/V."""

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Turns hidden states [W, E] into float32 logits [W, V]."""
