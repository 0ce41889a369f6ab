"""What one contender did on one dataset, and the figures that come of it."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np

from emsjax.bench.contenders import Spec
from emsjax.bench.decoding import Run
from emsjax.bench.parts import StepParts
from emsjax.errors import UserError


class Spread(NamedTuple):
    """Of repetitions: median, least and greatest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of one value or more."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass
class Cell:
    """Runs of one contender on one dataset at one batch size.

    Attributes:
      spec: the contender.
      dataset: which prompts.
      batch_size: B.
      facts: of the contender: `compile_seconds`, `peak_memory_bytes` and the like.
      runs: by repetition, then by batch of prompts.
      parts: where the time of a step goes; None where not timed.
      limit_share: of the device's limit; None where not known.
      error: why there are no figures, or fewer runs than were wanted; None where all is well.
    """

    spec: Spec
    dataset: str
    batch_size: int
    facts: dict[str, Any] = field(default_factory=dict)
    runs: list[list[Run]] = field(default_factory=list)
    parts: StepParts | None = None
    limit_share: float | None = None
    error: str | None = None

    @property
    def measured(self) -> bool:
        """Whether there are figures."""
        return self.error is None and all(self.runs)

    @property
    def texts(self) -> list[tuple[int, ...]]:
        """Of all prompts, in their order."""
        return [text for run in self.runs[-1] for text in run.tokens]

    @property
    def tokens(self) -> int:
        """Of all texts."""
        return sum(map(len, self.texts))

    def decode_seconds(self) -> list[float]:
        """Of each repetition, all prompts together; reading them not counted."""
        return [sum(run.seconds for run in runs) for runs in self.runs]

    def all_seconds(self) -> list[float]:
        """Of each repetition, reading the prompts counted."""
        return [sum(run.seconds + run.prefill for run in runs) for runs in self.runs]

    def count(self, name: str) -> np.ndarray:
        """One of `SlotStats`, summed over the last repetition."""
        return np.sum([run.counts[name] for run in self.runs[-1]], axis=0)

    def share(self, part: str, whole: str) -> float:
        """A count as a share of another; 0 of nothing."""
        return float(self.count(part) / max(self.count(whole), 1))


@contextmanager
def mishaps(on_error: Callable[[str], None]) -> Iterator[None]:
    """Tells of what may happen to one contender while the rest goes on: it does not fit."""
    try:
        yield
    except UserError as error:
        on_error(str(error))
    except Exception as error:
        if not _out_of_memory(error):
            raise
        on_error("out of memory")


def _out_of_memory(error: Exception) -> bool:
    """Of jax or of PyTorch, which need not be there to ask."""
    if isinstance(error, jax.errors.JaxRuntimeError):
        return "RESOURCE_EXHAUSTED" in str(error)
    if isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error):
        return True  # PyTorch's on a CPU has no name of its own
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
