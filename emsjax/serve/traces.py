"""The origin of each token of an answer, as the extension `emsjax_trace` has it."""

from typing import Any

from emsjax.requests.outputs import CompletionOutput
from emsjax.token_view.shown import ShownStep, ShownToken, shown_steps


def trace_of(output: CompletionOutput) -> dict[str, Any]:
    """Returns the trace of an output, whose engine records traces.

    Returns:
      `steps`, the target's steps in order, each with the `tokens` that it emitted, the texts of
      what was `drafted`, how many of them were `accepted`, and the texts that were `rejected`. A
      token has its `id`, `source` (see `emsjax.engine.trace.Trace.sources`) and `text`; with `cut`,
      its text after the end of the answer's, or `name`, what a token without text is called.
    """
    return {"steps": [_step(step) for step in shown_steps(output)]}


def _step(step: ShownStep) -> dict[str, Any]:
    return {
        "tokens": [_token(token) for token in step.tokens],
        "drafted": step.drafted,
        "accepted": step.accepted,
        "rejected": step.drafted[step.accepted :] if step.own else [],
    }


def _token(token: ShownToken) -> dict[str, Any]:
    found = {"id": token.id, "source": token.source, "text": token.text}
    return found | {name: getattr(token, name) for name in ("cut", "name") if getattr(token, name)}
