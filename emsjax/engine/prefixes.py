"""What the cache of each slot holds, so that no prompt's beginning is read twice.

A slot keeps its text until another job takes the slot. A job copies the K/V of the longest
beginning that it shares with any slot's text, live or finished.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

# Shorter beginnings are read again: all chats begin alike, and a copy has a price too.
SHORTEST = 32
# A prompt waits until another one has read this many tokens for it, which is a step or more.
WORTH_WAITING = 256


class Shared(NamedTuple):
    """The beginning of a prompt whose K/V is in a slot's cache.

    Attributes:
      slot: the slot.
      length: its tokens, fewer than the prompt's: the last one is always read, because the first
        token of the output is chosen after its row.
    """

    slot: int
    length: int


@dataclass
class _Held:
    """The text in one slot's cache.

    Attributes:
      tokens: int32[n], the text as far as the host knows it.
      cached: how many of these have their K/V in the cache.
      used: when the slot was last of use, as a count.
    """

    tokens: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    cached: int = 0
    used: int = 0


class Prefixes:
    """The texts in the caches of all slots."""

    def __init__(self, num_slots: int, share: bool = True):
        """Starts with caches that hold nothing.

        Args:
          num_slots: B.
          share: whether prompts share beginnings, apart from the outputs of one prompt.
        """
        self._share = share
        self._held = [_Held() for _ in range(num_slots)]
        self._uses = 0

    def longest(self, prompt: Sequence[int], among: Collection[int] | None = None) -> Shared | None:
        """Returns the longest beginning of a prompt that a slot holds; None if all are short.

        Args:
          prompt: the prompt's tokens.
          among: slots that are known to hold this prompt, so that any length will do; None for
            all slots.
        """
        if among is None and not self._share:
            return None
        wanted = np.asarray(prompt[:-1], np.int32)
        slots = range(len(self._held)) if among is None else among
        lengths = {slot: self._common(slot, wanted) for slot in slots}
        best = max(lengths, key=lengths.__getitem__, default=None)
        if best is None or lengths[best] < (SHORTEST if among is None else 0):
            return None
        return Shared(best, lengths[best])

    def coming(self, prompt: Sequence[int], reading: Sequence[int]) -> bool:
        """Returns whether much more of a prompt will soon be in the cache than is there now.

        Args:
          prompt: the prompt's tokens.
          reading: the slots that are live.
        """
        if not self._share:
            return False
        wanted = np.asarray(prompt[:-1], np.int32)
        now = [self._common(slot, wanted) for slot in range(len(self._held))]
        later = {slot: _alike(self._held[slot].tokens, wanted) for slot in reading}
        # A slot that is not through yet counts with what it will have, not with what it has.
        coming = {slot: length for slot, length in later.items() if length > now[slot]}
        there = max((length for slot, length in enumerate(now) if slot not in coming), default=0)
        return max(coming.values(), default=0) - there >= WORTH_WAITING

    def place(self, free: Sequence[int], prompt: Sequence[int], shared: Shared | None) -> int:
        """Returns the free slot that a job should take: the one whose text will be missed least.

        Args:
          free: at least one slot.
          prompt: the job's prompt.
          shared: what the job has in common with a slot's text.
        """
        wanted = np.asarray(prompt, np.int32)
        idle = [slot for slot in free if self._lost(slot, wanted) < SHORTEST]
        if shared is not None and shared.slot in idle:
            return shared.slot  # and nothing is copied
        others = [slot for slot in free if shared is None or slot != shared.slot]
        return min(idle or others or free, key=lambda slot: self._held[slot].used)

    def _lost(self, slot: int, wanted: np.ndarray) -> int:
        """Counts the tokens that would have to be read again without a slot's text.

        What another slot or the job that takes the slot has too is not lost.
        """
        text = self._held[slot].tokens[: self._held[slot].cached]
        others = [self._common(n, text) for n in range(len(self._held)) if n != slot]
        return len(text) - max(self._common(slot, wanted), *others, 0)

    def admit(self, slot: int, prompt: Sequence[int], shared: Shared | None) -> None:
        """Notes that a job took a slot, with the K/V that it shares already there."""
        if shared is not None:
            self._use(self._held[shared.slot])
        held = _Held(np.asarray(prompt, np.int32), 0 if shared is None else shared.length)
        self._use(held)
        self._held[slot] = held

    def read(self, slot: int, cached: int) -> None:
        """Notes how many tokens of a slot's text have their K/V in the cache."""
        held = self._held[slot]
        held.cached = min(cached, len(held.tokens))

    def finish(self, slot: int, output: Sequence[int], cached: int) -> None:
        """Notes the output of a finished job, which later prompts may contain."""
        held = self._held[slot]
        held.tokens = np.concatenate([held.tokens, np.asarray(output, np.int32)])
        self._use(held)
        self.read(slot, cached)

    def drop(self, slot: int) -> None:
        """Notes that a slot's cache must not be used again."""
        self._held[slot] = _Held(used=self._held[slot].used)

    def _use(self, held: _Held) -> None:
        self._uses += 1
        held.used = self._uses

    def _common(self, slot: int, wanted: np.ndarray) -> int:
        held = self._held[slot]
        return _alike(held.tokens[: held.cached], wanted)


def _alike(text: np.ndarray, other: np.ndarray) -> int:
    """Returns the length of the longest beginning that two texts have in common."""
    length = min(len(text), len(other))
    differ = np.flatnonzero(text[:length] != other[:length])
    return int(differ[0]) if differ.size else length
