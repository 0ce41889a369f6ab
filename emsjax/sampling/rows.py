"""Which rows of a step the logits belong to, and what choosing reads of their slots."""

from typing import Any, NamedTuple, Protocol

import jax


class Rows(NamedTuple):
    """Where each row of logits [W, V] stands.

    Attributes:
      slots: int32[W], its slot, 0 to B - 1.
      positions: int32[W], the place in its sample of the token that the logits follow.
    """

    slots: jax.Array
    positions: jax.Array


class Slots(Protocol):
    """What choosing reads of the state of all slots: a part of `engine.state.DecodeState`."""

    @property
    def tokens(self) -> jax.Array:
        """int32[B, S], prompt and output of each slot."""

    @property
    def lens(self) -> jax.Array:
        """int32[B], how many of them are known."""

    @property
    def live(self) -> jax.Array:
        """bool[B], which slots are being worked on."""

    @property
    def stop_ids(self) -> jax.Array:
        """int32[B, E], tokens that end each slot's text."""

    @property
    def stats(self) -> Any:
        """Counters of each slot, for AdapT: `target_steps` int32[B]."""

    @property
    def sampling(self) -> Any:
        """`SamplingState`; None where every slot takes the likeliest token."""
