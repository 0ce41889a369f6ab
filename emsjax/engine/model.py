"""All that the rest of emsjax reads of a model, and nothing about any family."""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from emsjax.engine.packing import PackedBatch


class Sizes(NamedTuple):
    """What a model moves and multiplies.

    Attributes:
      weights_bytes: all parameters.
      read_bytes: those that every step reads whole; tables it takes a few rows of are left out.
      row_flops: operations of one row in all layers, without attention.
      logit_flops: operations of the logits after one row.
      token_bytes: one token's keys and values in the cache, all layers, as the platform being
        compiled for lays them out.
      token_flops: operations of one row's attention to one cached token, all layers.
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
        """Type of the activations; weights may be stored in another."""

    @property
    def vocab_size(self) -> int:
        """V."""

    @property
    def max_positions(self) -> int:
        """The longest sequence the model was made for, in tokens."""

    @property
    def windows(self) -> tuple[int, ...]:
        """Sliding window of each layer in tokens, 0 for none; empty if no layer has one."""

    @property
    def intermediate_size(self) -> int:
        """Width of the feed-forward layer, and by default of a draft trained for this model."""

    @property
    def embedding_kernel(self) -> jax.Array:
        """The token embedding [V, E]."""

    @property
    def output_kernel(self) -> jax.Array:
        """What logits are products with, [V, E]; the embedding itself if the two are tied."""

    @property
    def sizes(self) -> Sizes:
        """Bytes and operations of a step."""

    def cache_spec(self, num_slots: int, capacity: int) -> jax.ShapeDtypeStruct:
        """Shape and type of the K/V cache for B slots of S tokens."""

    def __call__(
        self, batch: PackedBatch, cache: jax.Array, *, max_q_len: int
    ) -> tuple[jax.Array, jax.Array]:
        """Hidden states [T, E] of the packed rows, and the cache with their K/V written."""

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Hidden states [W, E] to float32 logits [W, V]."""
