"""Renders the page as one HTML file with its style and script inside."""

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

# Explanations of the sources of tokens, for the legend.
_MEANINGS: dict[Source, str] = {
    "drafted": "proposed by the drafter, accepted by the target",
    "bonus": "the target's own, after accepted drafts in the same step",
    "plain": "the target's own, from a step that accepted no draft",
}


def render(
    title: str,
    totals: RunTotals,
    sources: Mapping[Source, int],
    outputs: Sequence[ShownOutput],
    requests: int,
) -> str:
    """Renders the page.

    Args:
      title: the title of the page.
      totals: sums over all requests.
      sources: the number of tokens from each source, over all requests.
      outputs: the outputs to show.
      requests: the number of requests that the shown outputs belong to.
    """
    steps = [step for output in outputs for step in output.trace.steps]
    page = _template().render(
        title=title,
        totals=totals,
        sources={source: sources.get(source, 0) for source in _MEANINGS},
        meanings=_MEANINGS,
        # Accepted tokens after the stop string, which are in no text.
        beyond_stop=sum(totals.accepted_by_position) - sources.get("drafted", 0),
        outputs=[_with_chart(output) for output in outputs],
        requests=requests,
        timelines=timelines(outputs),
        highest=highest(steps),
        deepest=deepest(steps),
    )
    # A name may hold half a surrogate pair, which UTF-8 cannot encode.
    return page.encode("utf-8", "replace").decode()


def _with_chart(output: ShownOutput) -> dict[str, Any]:
    """Adds the columns of its steps to an output."""
    emitting = [step for step in output.trace.steps if step.emitted]
    return {"output": output, "columns": columns(enumerate(emitting))}


@cache
def _template() -> Template:
    # Autoescaping keeps prompts and generated text from being read as HTML.
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals |= {
        "style": asset("tokens.css") + asset("style.css"),
        "script": asset("view.js"),
    }
    environment.filters["count"] = count
    return environment.from_string(asset("page.html"))


def asset(name: str) -> str:
    """Returns a file of the page, such as `view.js`."""
    return files("emsjax.token_view").joinpath(name).read_text(encoding="utf-8")
