"""The model interface: everything the rest of emsjax uses, independent of the model family."""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from emsjax.engine.packing import PackedBatch


class Sizes(NamedTuple):
    """The bytes that a model moves and the operations that it needs.

    Attributes:
      weights_bytes: bytes of all parameters.
      read_bytes: bytes of the parameters that every step reads in full. Tables of which a step
        reads only a few rows are left out.
      row_flops: operations for one row in all layers, without attention.
      logit_flops: operations for the logits of one row.
      token_bytes: bytes of one token's keys and values in the cache, all layers, in the layout of
        the platform that is compiled for.
      token_flops: operations for one row's attention to one cached token, all layers.
      itemsize: bytes of a number in the products.
    """

    weights_bytes: int
    read_bytes: int
    row_flops: int
    logit_flops: int
    token_bytes: int
    token_flops: int
    itemsize: int


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
    def embedding_kernel(self) -> jax.Array:
        """The token embedding [V, E]."""

    @property
    def output_kernel(self) -> jax.Array:
        """The matrix that turns hidden states into logits, [V, E]; the embedding if tied."""

    @property
    def sizes(self) -> Sizes:
        """The bytes and operations of a step, see `Sizes`."""

    def cache_spec(self, num_slots: int, capacity: int) -> jax.ShapeDtypeStruct:
        """Returns the shape and type of the K/V cache for B slots of S tokens."""

    def __call__(
        self, batch: PackedBatch, cache: jax.Array, *, max_q_len: int
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the hidden states [T, E] of the packed rows, and the cache with their K/V."""

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Turns hidden states [W, E] into float32 logits [W, V]."""
