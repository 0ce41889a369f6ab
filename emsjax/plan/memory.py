"""What of a decode program takes how much of the device's memory, and the largest that fits."""

from collections.abc import Callable
from typing import NamedTuple


class Memory(NamedTuple):
    """Bytes of one decode program.

    Attributes:
      num_slots: B.
      weights: of the model.
      cache: keys and values.
      state: all else that lives between steps: tokens, the drafter's index.
      temporaries: of a step, and the program itself.
      compiled: whether the compiler said so; else it is arithmetic.
    """

    num_slots: int
    weights: int
    cache: int
    state: int
    temporaries: int
    compiled: bool

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.cache + self.state + self.temporaries

    @property
    def per_slot(self) -> float:
        """What grows with the slots, for each of them."""
        return (self.cache + self.state) / self.num_slots


def largest_batch(
    first: Memory, device_bytes: int, measure: Callable[[int], Memory]
) -> Memory | None:
    """The most slots that fit, by measuring few sizes; None where not even one does.

    Cache and state grow with the slots, the temporaries hardly: so one size tells about where to
    look. The batch that is returned was measured, and by its figures one more would not fit, or
    does not by its own.

    Args:
      first: of some batch.
      device_bytes: what there is.
      measure: tells the memory of a batch size; dear.
    """
    if first.weights + first.per_slot > device_bytes:
        return None
    found, fits, too_many = first, None, None
    while True:
        if found.total <= device_bytes:
            fits = found
        else:
            too_many = found.num_slots
        guess = _next_guess(found, fits, too_many, device_bytes)
        if guess is None:
            return fits
        found = measure(guess)


def _next_guess(
    found: Memory, fits: Memory | None, too_many: int | None, device_bytes: int
) -> int | None:
    """Where to look next; None where that is settled."""
    least = fits.num_slots if fits else 0
    guess = _fitting(found, device_bytes)
    if too_many is None:
        return guess if guess > least else None
    if guess <= least and (fits is None or _fitting(fits, device_bytes) > least):
        # The two sizes contradict each other: the truth lies between them.
        guess = (least + too_many) // 2
    guess = min(guess, too_many - 1)
    return guess if guess > least else None


def _fitting(memory: Memory, device_bytes: int) -> int:
    """How many slots fit if each takes what one takes here."""
    return int((device_bytes - memory.weights - memory.temporaries) // memory.per_slot)
