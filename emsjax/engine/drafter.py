"""What a drafter is: an object whose state travels in the loop's pytree."""

from typing import Any, Protocol

import jax

from emsjax.engine.draft import Draft
from emsjax.engine.state import DecodeState

# Of a drafter with several sources (`Draft.source`), the one whose drafting takes time.
COSTLY_SOURCE = 1


class WorthDrafting(Protocol):
    """Tells how many tokens are worth drafting."""

    def __call__(self, survival: jax.Array, found: jax.Array | None = None) -> jax.Array:
        """For each slot, int32[], 0 to k.

        Args:
          survival: float32[B, k], how likely they and all before them are to be accepted; 0 for
            slots that will not have any.
          found: float32[B, f], the same for drafts that are there already; None for none.
        """


class Drafter(Protocol):
    """Guesses tokens; wrong guesses cost time and never change the text."""

    @property
    def draft_length(self) -> int:
        """k, the most tokens drafted for a slot in one step."""

    @property
    def read_bytes(self) -> int:
        """Bytes of weights that drafting a token reads, by which its time is estimated at first.

        0 where drafting takes next to no time. Else less may be drafted than could be.
        """

    @property
    def hidden_size(self) -> int:
        """D, if it reads the target's hidden states (`DecodeState.hidden`), else 0."""

    @property
    def weights(self) -> Any:
        """The arrays that it computes with, a pytree; `()` for none."""

    def init(self, num_slots: int, capacity: int) -> Any:
        """The drafter's state for B slots of S tokens, a pytree of arrays; `()` for none."""

    def admit(self, drafter_state: Any, slot: jax.Array) -> Any:
        """The state once slot int32[] holds a new request."""

    def propose(self, state: DecodeState, weights: Any, worth: WorthDrafting) -> tuple[Draft, Any]:
        """A draft for every slot, and the drafter's next state.

        Args:
          state: of all slots.
          weights: as `self.weights`, on the device.
          worth: tells how many tokens a slot are worth drafting; of interest where drafting
            takes time.
        """


class Stateless:
    """What a drafter that only reads the text, and remembers nothing between steps, inherits."""

    read_bytes = 0
    hidden_size = 0
    weights = ()

    def init(self, num_slots: int, capacity: int) -> Any:
        """No state."""
        del num_slots, capacity
        return ()

    def admit(self, drafter_state: Any, slot: jax.Array) -> Any:
        """Nothing to forget."""
        del slot
        return drafter_state
