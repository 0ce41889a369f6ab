"""Steps as columns of a chart: up the tokens that each emitted, down the drafts it rejected."""

from collections.abc import Iterable
from typing import NamedTuple

from emsjax.engine.trace import TraceStep

# Share of a step's width that its column takes.
_WIDTH = 0.84


class Columns(NamedTuple):
    """Paths of an SVG, one unit a step across and one unit a token up.

    Attributes:
      plain: the target's own tokens, from steps that accepted nothing.
      bonus: those from other steps.
      drafted: accepted drafts, on top of them.
      rejected: rejected drafts, below the line.
    """

    plain: str
    bonus: str
    drafted: str
    rejected: str


def columns(steps: Iterable[tuple[int, TraceStep]]) -> Columns:
    """The columns of steps, each at its place."""
    paths: dict[str, list[str]] = {name: [] for name in Columns._fields}
    for place, step in steps:
        own = int(step.own)
        if step.own:
            paths[step.sources[-1]].append(_column(place, 0, -1))
        paths["drafted"].append(_column(place, -own, own - step.emitted))
        paths["rejected"].append(_column(place, 0, len(step.rejected)))
    return Columns(**{name: "".join(path) for name, path in paths.items()})


def _column(place: int, base: int, height: int) -> str:
    """A column; SVG counts downwards."""
    return f"M{place} {base}h{_WIDTH}v{height}h-{_WIDTH}z" if height else ""


def highest(steps: Iterable[TraceStep]) -> int:
    """The most tokens of a step, 1 at the least."""
    return max((step.emitted for step in steps), default=1)


def deepest(steps: Iterable[TraceStep]) -> int:
    """The most rejected drafts of a step."""
    return max((len(step.rejected) for step in steps), default=0)
