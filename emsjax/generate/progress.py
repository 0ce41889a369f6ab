"""Progress of a run on standard error, and the summary at its end."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self, TextIO

from emsjax.cli.words import count
from emsjax.engine.metrics import RequestMetrics, RunTotals
from emsjax.engine.programs import PROGRAMS
from emsjax.host.compiling import KERNEL
from emsjax.requests.bar import Bar

_SECONDS_BETWEEN_LINES = 5.0
_COMPILING = "compiling {}, which takes a while; a later run like this one need not"
_DESCRIBED = {**PROGRAMS, KERNEL: "the kernels for this processor"}


class Progress:
    """Counts prompts and tokens, and shows them: a bar on a terminal, lines elsewhere.

    Used as a context manager around the run. It prints the summary at the end and after an
    interrupt, but not if an error or a closed pipe ended the run.

    Args:
      total: the number of prompts; None if unknown.
      command_started: `clock()` when the command started, for the time to the first token.
      stream: where to print; standard error by default.
      clock: returns seconds.
      live: whether to show progress before the summary. False if text is streamed to the same
        terminal.
      model: the model's name, for the summary.
      on_begun: called with the first news of a prompt, when everything is loaded and compiled.

    Attributes:
      totals: sums over the finished requests.
      errors: the number of bad lines and failed requests.
      losses: the number of processes that ended before their time.
      model: as above; may be set later.
    """

    def __init__(
        self,
        total: int | None,
        command_started: float,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.perf_counter,
        live: bool = True,
        model: str = "",
        on_begun: Callable[[], None] = lambda: None,
    ):
        self.totals = RunTotals()
        self.errors = self.losses = 0
        self.model = model
        self._total = total
        self._clock = clock
        self._command_started = command_started
        self._stream = stream or sys.stderr
        self._skipped = 0
        self._reported = 0
        self._tokens = 0
        self._first_token: float | None = None
        self._started = self._last_line = clock()
        self._bar = Bar(self._stream, total) if live and self._stream.isatty() else None
        self._live = live
        self._said: set[str] = set()
        self._on_begun: Callable[[], None] | None = on_begun

    def __enter__(self) -> Self:
        self._started = self._last_line = self._clock()
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()
        if kind is None or kind is KeyboardInterrupt:
            for line in self.summary():
                self._print(line)

    def compiling(self, program: str) -> None:
        """Explains what is compiled and takes a while; called from another thread.

        Args:
          program: its name in `PROGRAMS`, or `KERNEL`; others are not described.
        """
        line = _COMPILING.format(_DESCRIBED.get(program, "a part of the run"))
        if line in self._said:
            return
        self._said.add(line)
        self._print_above(line)

    def lost(self, sentence: str) -> None:
        """Says that a process has ended before its time, whose prompts the others do."""
        self.losses += 1
        self._print_above(sentence)

    def say_once(self, line: str) -> None:
        """Prints a line unless it was printed before."""
        if line not in self._said:
            self._said.add(line)
            with self.paused():
                self._print(line)

    def emitted(self, tokens: int) -> None:
        """Counts tokens as the engine emits them."""
        if tokens and self._first_token is None:
            self._first_token = self._clock()
        self._tokens += tokens
        self._show()

    def finished(self, metrics: RequestMetrics) -> None:
        """Counts a finished prompt."""
        self.totals.add(metrics)
        self._show()

    def failed(self) -> None:
        """Counts a line that could not be run, or not to its end."""
        self.errors += 1
        self._show()

    def report(self, error: str) -> None:
        """Prints the error of a prompt that has no error record."""
        self._reported += 1
        with self.paused():
            self._print(error)

    def skipped(self) -> None:
        """Counts a prompt that an earlier run has finished."""
        self._skipped += 1
        self._show()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Hides the bar while something else writes to the terminal."""
        if self._bar:
            self._bar.stop()
        yield
        if self._bar:
            self._bar.start()

    def summary(self) -> list[str]:
        """Returns the lines of the summary."""
        return [*self._outcome(), *(_statistics(self.totals) if self.totals.requests else ())]

    def _outcome(self) -> Iterator[str]:
        seconds = self._clock() - self._started
        tokens = self.totals.emitted_tokens
        rate = tokens / seconds if seconds else 0.0
        by = f", by {self.model}" if self.model else ""
        yield (
            f"{count(self.totals.requests, 'prompt')}, {count(tokens, 'token')} "
            f"in {seconds:.1f} s: {rate:.1f} tokens/s{by}"
        )
        if self._skipped:
            yield f"{count(self._skipped, 'prompt')} already finished by an earlier run"
        if self.errors > self._reported:
            recorded = count(self.errors - self._reported, "bad line")
            yield f"{recorded}: see the error records in the output"
        if self._reported:
            yield f"{count(self._reported, 'prompt')} failed: see the errors above"
        if self.losses:
            yield f"{count(self.losses, 'replica')} ended early: see above; no prompt was lost"
        if self._first_token is not None:
            waited = self._first_token - self._command_started
            yield f"first token {waited:.2f} s after the start, including loading and compiling"

    def _show(self) -> None:
        if self._on_begun is not None:
            self._on_begun()
            self._on_begun = None
        now = self._clock()
        done = self.totals.requests + self.errors + self._skipped
        rate = self._tokens / (now - self._started) if now > self._started else 0.0
        if self._bar:
            self._bar.update(done, self._tokens, rate)
        elif self._live and now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            prompts = (
                count(done, "prompt") if self._total is None else f"{done:,} of {self._total:,}"
            )
            self._print(f"{prompts} done, {count(self._tokens, 'token')}, {rate:.1f} tokens/s")

    def _print_above(self, line: str) -> None:
        """Prints a line above the bar, if there is one, from any thread."""
        if self._bar:  # redrawn below the line, which rich does for its own console only
            self._bar.print(line, highlight=False, soft_wrap=True)
        else:
            self._print(line)

    def _print(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


def _statistics(totals: RunTotals) -> Iterator[str]:
    yield (
        f"{totals.tokens_per_target_step:.2f} tokens per target step "
        f"({count(totals.target_steps, 'step')})"
    )
    shares = totals.acceptance_by_position
    if any(share is not None for share in shares):
        row = "  ".join(f"{i}: {_percent(share)}" for i, share in enumerate(shares, start=1))
        yield f"acceptance by draft position: {row}"
    yield (
        f"time to first token: mean {totals.mean_time_to_first_token:.2f} s, "
        f"maximum {totals.first_token_max:.2f} s"
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
