"""The drafter interface: an object whose state is part of the loop's pytree."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

from emsjax.engine.devices import SAME
from emsjax.engine.draft import Draft
from emsjax.engine.packing import PackedBatch
from emsjax.engine.state import DecodeState
from emsjax.engine.step_costs import Passes

# The source (`Draft.source`) of what was found at next to no cost.
FOUND_SOURCE = 0
# The source whose drafting takes time, in a drafter with several sources.
COSTLY_SOURCE = 1
# The source of a drafter's second and further choices for a place, which are mostly wrong.
SIBLING_SOURCE = 2
# The source of what was found besides the best.
OTHER_FOUND_SOURCE = 3


class WorthDrafting(Protocol):
    """A function that returns how many tokens are worth drafting in this step."""

    def __call__(
        self, survival: jax.Array, found: jax.Array | None = None, compete: bool = False
    ) -> jax.Array:
        """Returns the number of tokens to draft for each slot, int32[], 0 to k.

        Args:
          survival: float32[B, k], the probability that each token and all before it are accepted; 0
            for slots without a draft.
          found: float32[B, f], the same for drafts that exist already; None if there are none.
          compete: whether slots may verify guesses of both; otherwise each takes the better one.
        """


class Drafter(Protocol):
    """Guesses tokens. Wrong guesses cost time and never change the text."""

    @property
    def draft_length(self) -> int:
        """k, the most tokens drafted for a slot in one step."""

    @property
    def read_bytes(self) -> int:
        """Bytes of weights that a pass of drafting reads; 0 if drafting takes next to no time.

        The first estimate of the drafting time is based on it. If it is not 0, the planner may
        ask for fewer tokens than the drafter can produce.
        """

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states that it starts from (`DecodeState.hidden`); 0 for none.

        They are the target's, or what `Observing.observe` returns.
        """

    @property
    def hidden_layers(self) -> tuple[int, ...]:
        """The target's layers whose inputs it reads, side by side; empty for the final states.

        The one after the last is the final norm.
        """

    @property
    def weights(self) -> Any:
        """The arrays that the drafter computes with, as a pytree; `()` for none."""

    def init(self, num_slots: int, capacity: int) -> Any:
        """Returns the drafter's state for B slots of S tokens, a pytree; `()` for no state."""

    def admit(self, drafter_state: Any, slot: jax.Array) -> Any:
        """Returns the drafter's state after slot int32[] has received a new request."""

    def propose(self, state: DecodeState, weights: Any, worth: WorthDrafting) -> tuple[Draft, Any]:
        """Returns a draft for every slot, and the drafter's next state.

        It may run some of the target's layers on `state.cache`, see `Draft.cache`.

        Args:
          state: the state of all slots.
          weights: `self.weights`, on the device.
          worth: returns how many tokens per slot are worth drafting. Drafters that take next to no
            time can ignore it.
        """


@runtime_checkable
class InPasses(Protocol):
    """A drafter of which a pass does not simply guess one token for each slot."""

    def passes(self, num_slots: int) -> Passes:
        """Returns the passes that draft for B slots."""


def passes_of(drafter: Drafter, num_slots: int) -> Passes:
    """Returns the passes in which a drafter drafts for B slots: one a token unless it says so."""
    if isinstance(drafter, InPasses):
        return drafter.passes(num_slots)
    return Passes(drafter.draft_length)


@runtime_checkable
class Sharing(Protocol):
    """A drafter with a cache of its own, which need not read again what another slot has read."""

    def share(
        self, drafter_state: Any, slot: jax.Array, source: jax.Array, length: jax.Array
    ) -> Any:
        """Returns the drafter's state after a slot has received a new request; replaces `admit`.

        Args:
          drafter_state: the drafter's state.
          slot: int32[], the slot.
          source: int32[], a slot whose text begins like the request's prompt, possibly the same.
          length: int32[], the tokens of that beginning; 0 if there is none.
        """


@runtime_checkable
class Placed(Protocol):
    """A drafter whose state is not the same on all devices that share the target."""

    @property
    def state_places(self) -> Any:
        """A prefix of the state's tree, with the places on the mesh."""


def places_of(drafter: Drafter) -> Any:
    """Returns the places of a drafter's state on devices that share the target."""
    return drafter.state_places if isinstance(drafter, Placed) else SAME


class Observation(NamedTuple):
    """What the target has read and written in a step.

    Attributes:
      batch: its rows, [T], at the places where the target has their K/V.
      hidden: [T, E], their hidden states, of `Drafter.hidden_layers`.
      following: int32[T], the token after each row, known or just chosen. After a draft token that
        is not accepted, and for unused rows, it means nothing.
      max_q_len: static bound on the rows of one slot.
    """

    batch: PackedBatch
    hidden: jax.Array
    following: jax.Array
    max_q_len: int


@runtime_checkable
class Observing(Protocol):
    """A drafter with a cache of its own that reads the target's hidden states of all rows.

    Its cache has the K/V of the same tokens as the target's, at the same places. Those of a token
    also depend on the token after it. So where a slot takes over the beginning of another text, the
    last token of that beginning is read again.
    """

    @property
    def observing(self) -> bool:
        """Whether it does so; a drafter made of others asks those."""

    def observe(self, drafter_state: Any, weights: Any, seen: Observation) -> tuple[Any, jax.Array]:
        """Reads the rows of a step, in the rung that ran them.

        Returns:
          The drafter's state; and a state of each row, [T, D], of which `DecodeState.hidden` gets
          the one of each slot's newest row.
        """

    def move_kv(
        self, drafter_state: Any, sources: jax.Array, targets: jax.Array, moved: jax.Array
    ) -> Any:
        """Returns the drafter's state with K/V moved like the target's, see `Model.move_kv`."""


def observer(drafter: Drafter) -> Observing | None:
    """Returns the drafter if it observes, or None."""
    return drafter if isinstance(drafter, Observing) and drafter.observing else None


class Memoryless:
    """Base class of drafters that remember nothing between steps."""

    def init(self, num_slots: int, capacity: int) -> Any:
        """Returns no state."""
        del num_slots, capacity
        return ()

    def admit(self, drafter_state: Any, slot: jax.Array) -> Any:
        """Returns the state unchanged, as there is nothing to forget."""
        del slot
        return drafter_state


class Stateless(Memoryless):
    """Base class of drafters that only read the text and remember nothing between steps."""

    read_bytes = 0
    hidden_size = 0
    hidden_layers = ()
    weights = ()
