"""The time of a whole job: prompts are read, slots refilled, and all texts written."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np

from emsjax.bench.decoding import Run
from emsjax.bench.prompts import Tokens
from emsjax.engine.job import Job


class Served(NamedTuple):
    """A job that ran from its first prompt to its last token.

    Attributes:
      seconds: the time it took.
      tokens: the text of each prompt, as token ids.
      counts: fields of `SlotStats`, summed over the texts; empty if they are unknown.
    """

    seconds: float
    tokens: list[Tokens]
    counts: dict[str, np.ndarray]


class Server(Protocol):
    """A contender or another library."""

    def serve(self, jobs: Sequence[Job]) -> Served:
        """Reads the jobs' prompts and writes their texts; their number may exceed the slots."""
        ...


def whole_job(server: Server, jobs: Sequence[Job]) -> Run:
    """Runs the jobs twice, with one new token and with all of them.

    Returns:
      A run whose `prefill` is the time with one new token, and whose `seconds` is what the further
      tokens took.
    """
    reading = server.serve([replace(job, max_tokens=1) for job in jobs]).seconds
    served = server.serve(jobs)
    steps = max(map(len, served.tokens))
    return Run(served.seconds - reading, served.tokens, steps, served.counts, reading)
