"""From what is to be shown to a page: one file, with its style and script in it."""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined, Template

from emsjax.cli.words import count
from emsjax.engine.metrics import RunTotals
from emsjax.engine.trace import Source
from emsjax.token_view.columns import columns, deepest, highest
from emsjax.token_view.shown import ShownOutput
from emsjax.token_view.timeline import timelines

# What each source of tokens is, for the key.
_MEANINGS: dict[Source, str] = {
    "drafted": "guessed by the drafter, confirmed by the target",
    "bonus": "the target's own, behind accepted drafts in the same step",
    "plain": "the target's own, from a step that accepted none",
}


def render(
    title: str,
    totals: RunTotals,
    sources: Mapping[Source, int],
    outputs: Sequence[ShownOutput],
    requests: int,
) -> str:
    """The page.

    Args:
      title: of the page.
      totals: figures of all requests.
      sources: tokens of all requests by where they came from.
      outputs: those to be shown.
      requests: how many requests they are of.
    """
    steps = [step for output in outputs for step in output.trace.steps]
    page = _template().render(
        title=title,
        totals=totals,
        sources={source: sources.get(source, 0) for source in _MEANINGS},
        meanings=_MEANINGS,
        # Accepted, but no text has them.
        behind=sum(totals.accepted_by_position) - sources.get("drafted", 0),
        outputs=[_with_chart(output) for output in outputs],
        requests=requests,
        timelines=timelines(outputs),
        highest=highest(steps),
        deepest=deepest(steps),
    )
    # Half a surrogate pair in a name, say.
    return page.encode("utf-8", "replace").decode()


def _with_chart(output: ShownOutput) -> dict[str, Any]:
    """An output and the columns of its steps."""
    emitting = [step for step in output.trace.steps if step.emitted]
    return {"output": output, "columns": columns(enumerate(emitting))}


@cache
def _template() -> Template:
    # All that comes from prompts and models goes through the template's escaping.
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals |= {"style": _file("style.css"), "script": _file("view.js")}
    environment.filters["count"] = count
    return environment.from_string(_file("page.html"))


def _file(name: str) -> str:
    return files("emsjax.token_view").joinpath(name).read_text(encoding="utf-8")
