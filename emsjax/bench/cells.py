"""The runs of one contender on one dataset, and the figures computed from them."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from emsjax.bench.contenders import Spec
from emsjax.bench.decoding import Run
from emsjax.bench.parts import StepParts
from emsjax.errors import UserError
from emsjax.host.memory_error import is_out_of_memory


class Spread(NamedTuple):
    """Median, minimum and maximum over repetitions."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of one or more values."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass
class Cell:
    """Runs of one contender on one dataset at one batch size.

    Attributes:
      spec: the contender.
      dataset: name of the prompts.
      batch_size: B.
      facts: record fields that describe the contender, such as `compile_seconds` and
        `peak_memory_bytes`.
      runs: by repetition, then by batch of prompts.
      parts: where the time of a step goes; None if it was not timed.
      limit_share: share of the device's limit that was reached; None if the limit is unknown.
      error: why figures or some of the runs are missing; None if nothing failed.
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
        """Whether every repetition ran without an error."""
        return self.error is None and all(self.runs)

    @property
    def texts(self) -> list[tuple[int, ...]]:
        """The texts written for all prompts, in the order of the prompts."""
        return [text for run in self.runs[-1] for text in run.tokens]

    @property
    def tokens(self) -> int:
        """The number of tokens in all texts."""
        return sum(map(len, self.texts))

    def decode_seconds(self) -> list[float]:
        """Seconds of each repetition over all prompts, prefill excluded."""
        return [sum(run.seconds for run in runs) for runs in self.runs]

    def all_seconds(self) -> list[float]:
        """Seconds of each repetition over all prompts, prefill included."""
        return [sum(run.seconds + run.prefill for run in runs) for runs in self.runs]

    def prefill_seconds(self) -> list[float]:
        """Seconds of each repetition that reading all prompts took."""
        return [sum(run.prefill for run in runs) for runs in self.runs]

    def count(self, name: str) -> np.ndarray:
        """A field of `SlotStats`, summed over the last repetition."""
        return np.sum([run.counts[name] for run in self.runs[-1]], axis=0)

    def share(self, part: str, whole: str) -> float:
        """One count as a share of another; a `whole` of 0 counts as 1."""
        return float(self.count(part) / max(self.count(whole), 1))


@contextmanager
def catching_failures(on_error: Callable[[str], None]) -> Iterator[None]:
    """Reports errors that concern one contender, so that the others can continue.

    Args:
      on_error: called with the message of a `UserError`, or with "out of memory".

    Raises:
      Exception: any other error of the body.
    """
    try:
        yield
    except UserError as error:
        # A library that is compared may run out of memory too.
        on_error("out of memory" if _out_of_memory(error.__cause__) else str(error))
    except Exception as error:
        if not _out_of_memory(error):
            raise
        on_error("out of memory")


def _out_of_memory(error: BaseException | None) -> bool:
    """Whether jax or PyTorch ran out of memory, found without importing PyTorch."""
    if is_out_of_memory(error):
        return True
    if isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error):
        return True  # On a CPU, PyTorch raises a plain RuntimeError.
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
