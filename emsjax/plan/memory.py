"""The memory of a decode program, and the search for the largest batch that fits."""

from collections.abc import Callable
from typing import NamedTuple


class Memory(NamedTuple):
    """Memory of one decode program, in bytes.

    Attributes:
      num_slots: B.
      weights: the model's weights.
      cache: keys and values.
      state: everything else that persists between steps, such as tokens and the drafter's index.
      temporaries: temporary buffers of a step, and the program itself.
      compiled: whether the figures are the compiler's; otherwise they are estimates.
    """

    num_slots: int
    weights: int
    cache: int
    state: int
    temporaries: int
    compiled: bool

    @property
    def total(self) -> int:
        """Total bytes."""
        return self.weights + self.cache + self.state + self.temporaries

    @property
    def per_slot(self) -> float:
        """Bytes that each slot adds."""
        return (self.cache + self.state) / self.num_slots


def largest_batch(
    first: Memory, device_bytes: int, measure: Callable[[int], Memory]
) -> Memory | None:
    """Finds the largest batch that fits, measuring as few batch sizes as possible.

    Cache and state grow with the slots, while temporaries hardly do, so that one measured size
    predicts the result well. The returned batch was measured. One more slot does not fit, either
    as predicted from this batch or as measured.

    Args:
      first: memory of any batch.
      device_bytes: available memory.
      measure: returns the memory of a batch size; slow.

    Returns:
      Memory of the largest batch that fits, or None if not even one slot fits.
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
    """Returns the batch size to measure next, or None if the search has ended.

    Args:
      found: the last measurement.
      fits: the largest measured batch that fits, or None.
      too_many: the smallest measured batch size that does not fit, or None.
      device_bytes: available memory.
    """
    least = fits.num_slots if fits else 0
    guess = _fitting(found, device_bytes)
    if too_many is None:
        return guess if guess > least else None
    if guess <= least and (fits is None or _fitting(fits, device_bytes) > least):
        # The two measurements predict different results, so the result lies between them.
        guess = (least + too_many) // 2
    guess = min(guess, too_many - 1)
    return guess if guess > least else None


def _fitting(memory: Memory, device_bytes: int) -> int:
    """Predicts how many slots fit, from the memory per slot in one measurement."""
    return int((device_bytes - memory.weights - memory.temporaries) // memory.per_slot)
