"""The figures at `/metrics`, under vLLM's names, so that its dashboards read them."""

from collections.abc import Callable, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from emsjax.engine.metrics import RequestMetrics
from emsjax.requests.outputs import RequestOutput

_LABELS = ("model_name", "engine")
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)
ABORTED = "abort"


class Metrics:
    """The figures of one server."""

    def __init__(self, model: str, running: Callable[[], int], waiting: Callable[[], int]):
        """Starts at 0.

        Args:
          model: the name of the model.
          running: returns the number of outputs that are generated now.
          waiting: returns the number of outputs that wait for a slot.
        """
        self._registry = CollectorRegistry()
        self._labels = {"model_name": model, "engine": "0"}
        for name, text, count in (
            ("num_requests_running", "Outputs being generated.", running),
            ("num_requests_waiting", "Outputs that wait for a slot.", waiting),
        ):
            self._made(Gauge, name, text).labels(**self._labels).set_function(count)
        self._prompt = self._counter("prompt_tokens", "Tokens of prompts.")
        self._generated = self._counter("generation_tokens", "Generated tokens.")
        self._queries = self._counter("prefix_cache_queries", "Prompt tokens looked for.")
        self._hits = self._counter("prefix_cache_hits", "Prompt tokens that were not read again.")
        self._drafts = self._counter("spec_decode_num_drafts", "Drafts verified.")
        self._drafted = self._counter("spec_decode_num_draft_tokens", "Draft tokens verified.")
        self._accepted = self._counter(
            "spec_decode_num_accepted_tokens", "Draft tokens accepted and emitted."
        )
        self._by_position = self._made(
            Counter,
            "spec_decode_num_accepted_tokens_per_pos",
            "Draft tokens accepted, by position in the draft.",
            "position",
        )
        self._ended = self._made(
            Counter, "request_success", "Outputs that ended, by reason.", "finished_reason"
        )
        self._first = self._histogram(
            "time_to_first_token_seconds", "From a streamed request to its first token."
        )
        self._whole = self._histogram("e2e_request_latency_seconds", "From a request to its end.")

    def first_token(self, seconds: float) -> None:
        """Counts the first token of a streamed output."""
        self._first.observe(seconds)

    def finished(self, output: RequestOutput, seconds: float) -> None:
        """Counts a finished request."""
        self._prompt.inc(len(output.prompt_token_ids))
        self._queries.inc(len(output.prompt_token_ids) * len(output.outputs))
        self._hits.inc(output.metrics.cached_prompt_tokens)
        self._whole.observe(seconds)
        for each in output.outputs:
            self._generated.inc(len(each.token_ids))
            self._end(each.finish_reason)
        self._speculation(output.metrics)

    def aborted(self, count: int) -> None:
        """Counts requests that were given up."""
        self._end(ABORTED, count)

    def text(self) -> bytes:
        """Returns all figures in the format of Prometheus."""
        return generate_latest(self._registry)

    def _speculation(self, metrics: RequestMetrics) -> None:
        self._drafts.inc(_first(metrics.drafted_by_position))
        self._drafted.inc(metrics.drafted_tokens)
        self._accepted.inc(metrics.accepted_tokens)
        for position, accepted in enumerate(metrics.accepted_by_position):
            labels = {**self._labels, "position": str(position)}
            self._by_position.labels(**labels).inc(accepted)

    def _end(self, why: str, count: int = 1) -> None:
        self._ended.labels(**self._labels, finished_reason=why).inc(count)

    def _counter(self, name: str, text: str) -> Any:
        return self._made(Counter, name, text).labels(**self._labels)

    def _histogram(self, name: str, text: str) -> Any:
        made = Histogram(f"vllm:{name}", text, _LABELS, buckets=_SECONDS, registry=self._registry)
        return made.labels(**self._labels)

    def _made(self, kind: Any, name: str, text: str, *more: str) -> Any:
        return kind(f"vllm:{name}", text, (*_LABELS, *more), registry=self._registry)


def _first(counts: Sequence[int]) -> int:
    return counts[0] if counts else 0
