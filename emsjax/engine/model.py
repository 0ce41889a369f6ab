"""The model interface: everything the rest of emsjax uses, independent of the model family."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from emsjax.engine.packing import PackedBatch
from emsjax.engine.sizes import Sizes


class Inner(NamedTuple):
    """Hidden states inside the model, with which it can begin.

    Attributes:
      states: [T, D], one of each packed row.
      layer: the layer whose input they are.
    """

    states: jax.Array
    layer: int


class View(NamedTuple):
    """The part of a text that its rows see.

    Attributes:
      sink_tokens: the first tokens of the text, so many.
      window: the tokens up to the row's own, so many.
    """

    sink_tokens: int
    window: int


class Pass(NamedTuple):
    """The result of a forward pass.

    Attributes:
      hidden: [T, E], the final hidden states, ready for the output projection.
      cache: K/V, with those of the rows.
      inner: [T, n * D], the inputs of the n layers that were asked for, side by side; None for
        none.
    """

    hidden: jax.Array
    cache: Any
    inner: jax.Array | None


class SomeTokens(Protocol):
    """A part of the vocabulary, and its part of the output projection."""

    @property
    def token_ids(self) -> jax.Array:
        """int32[Vd], the tokens."""

    @property
    def head(self) -> Any:
        """The rows of `Model.output_kernel` for these tokens, [Vd, E]."""


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
    def num_layers(self) -> int:
        """L, the number of layers."""

    @property
    def hidden_size(self) -> int:
        """D, the width of the hidden states between layers; E if the embedding is as wide."""

    @property
    def intermediate_size(self) -> int:
        """Width of the feed-forward layer, and by default of a draft trained for this model."""

    @property
    def embedding_kernel(self) -> Any:
        """The token embedding [V, E], an array or quantised.

        If devices share the model, more rows may follow.
        """

    @property
    def embedding_table(self) -> Any:
        """The token embedding as programs look rows up in it."""

    @property
    def output_kernel(self) -> Any:
        """The matrix that turns hidden states into logits, [V, E]; the embedding if tied."""

    @property
    def output_table(self) -> Any:
        """The same as programs use it, of which each device may have a part."""

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

    def run(
        self,
        batch: PackedBatch,
        cache: Any,
        *,
        max_q_len: int,
        start: Inner | None = None,
        keep: Sequence[int] = (),
        view: View | None = None,
    ) -> Pass:
        """Does what `__call__` does, or a part of it, and hands out states between layers.

        Only drafters that read inner states, or that run layers, need it.

        Args:
          batch: the rows.
          cache: of all layers.
          max_q_len: static bound on the rows of one slot.
          start: states to begin with, so that only the layers from there on run and write K/V;
            None begins with the tokens.
          keep: the layers whose inputs are returned. The one after the last is the final norm.
          view: what the rows see at most; None for the whole text. Layers with a shorter window see
            no sink tokens.
        """

    def move_kv(self, cache: Any, sources: jax.Array, targets: jax.Array, moved: jax.Array) -> Any:
        """Returns the cache after some tokens' K/V moved within their slots, in all layers.

        Only drafters of token trees need it.

        Args:
          cache: of all layers.
          sources: int32[B, n], places of the tokens.
          targets: int32[B, n], where they belong; those of a slot differ from each other.
          moved: bool[B, n], which tokens to move; entries of the others mean nothing.
        """

    def logits(self, hidden: jax.Array, some: SomeTokens | None = None) -> jax.Array:
        """Turns hidden states [W, E] into float32 logits [W, V], or [W, Vd] for some tokens."""
