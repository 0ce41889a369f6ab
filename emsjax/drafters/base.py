"""What a drafter is: an object whose state travels in the loop's pytree."""

from typing import Any, NamedTuple, Protocol

import jax

from emsjax.state import DecodeState


class Draft(NamedTuple):
    """Guesses for the tokens that follow each slot's known ones.

    Attributes:
      tokens: int32[B, k]; entries from `lens` on are not looked at.
      lens: int32[B], guesses of each slot, 0 to k.
    """

    tokens: jax.Array
    lens: jax.Array


class Drafter(Protocol):
    """Guesses tokens; wrong guesses cost time and never change the text."""

    @property
    def draft_length(self) -> int:
        """k, the most tokens drafted for a slot in one step."""

    def init(self, num_slots: int, capacity: int) -> Any:
        """The drafter's state for B slots of S tokens: a pytree of arrays, `()` for none."""

    def admit(self, drafter_state: Any, slot: jax.Array) -> Any:
        """The state once slot int32[] holds a new request."""

    def propose(self, state: DecodeState) -> tuple[Draft, Any]:
        """A draft for every slot, and the drafter's next state."""


class Stateless:
    """What a drafter that remembers nothing between steps inherits."""

    def init(self, num_slots: int, capacity: int) -> Any:
        """No state."""
        del num_slots, capacity
        return ()

    def admit(self, drafter_state: Any, slot: jax.Array) -> Any:
        """Nothing to forget."""
        del slot
        return drafter_state
