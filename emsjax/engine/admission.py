"""How a job gets into a slot: as arrays of fixed shapes, so that admitting compiles once."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from emsjax.engine.drafter import Drafter, Sharing
from emsjax.engine.job import Job
from emsjax.engine.state import DecodeState, admit
from emsjax.limits import MAX_STOP_IDS
from emsjax.sampling.choice import Choice
from emsjax.sampling.grammar import NO_ROW


class Request(NamedTuple):
    """A job as the arguments of `state.admit`, which describes them."""

    prompt: Any
    prompt_len: Any
    cached: Any
    max_len: Any
    stop_ids: Any
    choice: Choice
    first_row: Any

    @classmethod
    def of(cls, job: Job, capacity: int, cached: int, row: Any = None) -> "Request":
        """Makes the arguments.

        Args:
          job: the job.
          capacity: S, tokens of a slot.
          cached: the tokens of the job's prompt that the slot's cache holds.
          row: where its grammar begins in the table; None if it has none.
        """
        length = len(job.prompt)
        return cls(
            prompt=_padded(job.prompt, capacity, 0),
            prompt_len=np.int32(length),
            cached=np.int32(cached),
            max_len=np.int32(min(length + job.max_tokens, capacity)),
            stop_ids=_padded(job.stop_ids, MAX_STOP_IDS, -1),
            choice=job.choice,
            first_row=np.int32(NO_ROW) if row is None else row,
        )


def admit_request(
    state: DecodeState, drafter: Drafter, slot: jax.Array, source: jax.Array, request: Request
) -> DecodeState:
    """Puts a request into a free slot, of the drafter's state too; traced.

    Args:
      state: the state of all slots.
      drafter: whose state it is.
      slot: int32[], the slot to fill.
      source: int32[], the slot whose cache held the beginning of the prompt.
      request: the job.
    """
    state = admit(state, slot, *request)
    if isinstance(drafter, Sharing):
        shared = drafter.share(state.drafter, slot, source, request.cached)
        return state.replace(drafter=shared)
    return state.replace(drafter=drafter.admit(state.drafter, slot))


def _padded(numbers: Sequence[int], length: int, filler: int) -> np.ndarray:
    array = np.full(length, filler, np.int32)
    array[: len(numbers)] = numbers
    return array
