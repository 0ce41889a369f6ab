"""The columns of a chart: emitted tokens of each step upwards, rejected drafts downwards."""

from collections.abc import Iterable
from typing import NamedTuple

from emsjax.engine.trace import TraceStep

# The width of a column, as a share of its step's width.
_WIDTH = 0.84


class Columns(NamedTuple):
    """SVG paths, with one unit per step across and one unit per token upwards.

    Attributes:
      plain: the target's own tokens in steps that accepted no draft.
      bonus: the target's own tokens in the other steps.
      drafted: accepted draft tokens, on top of the target's own.
      rejected: rejected draft tokens, below the line.
    """

    plain: str
    bonus: str
    drafted: str
    rejected: str


def columns(steps: Iterable[tuple[int, TraceStep]]) -> Columns:
    """Draws the column of each step at its position."""
    paths: dict[str, list[str]] = {name: [] for name in Columns._fields}
    for position, step in steps:
        own = int(step.own)
        if step.own:
            paths[step.sources[-1]].append(_column(position, 0, -1))
        paths["drafted"].append(_column(position, -own, own - step.emitted))
        paths["rejected"].append(_column(position, 0, len(step.rejected)))
    return Columns(**{name: "".join(path) for name, path in paths.items()})


def _column(position: int, base: int, height: int) -> str:
    """A rectangle; y grows downwards in SVG, so a column that goes up has a negative height."""
    return f"M{position} {base}h{_WIDTH}v{height}h-{_WIDTH}z" if height else ""


def highest(steps: Iterable[TraceStep]) -> int:
    """Returns the most tokens that a step emitted, at least 1."""
    return max((step.emitted for step in steps), default=1)


def deepest(steps: Iterable[TraceStep]) -> int:
    """Returns the most draft tokens that a step rejected."""
    return max((len(step.rejected) for step in steps), default=0)
