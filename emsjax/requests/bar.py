"""A progress bar for prompts and tokens."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress


class Bar:
    """The progress bar; `stop` removes it from the screen."""

    def __init__(self, stream: TextIO, total: int | None):
        self._progress = RichProgress(
            BarColumn(),
            TextColumn("prompts {task.fields[done]} · tokens {task.fields[tokens]:,}"),
            TextColumn("{task.fields[rate]:.1f} tokens/s"),
            TimeElapsedColumn(),
            console=Console(file=stream),
            refresh_per_second=4,
            transient=True,
        )
        self._of = "" if total is None else f"/{total:,}"
        self._task: TaskID = self._progress.add_task(
            "", total=total, done=f"0{self._of}", tokens=0, rate=0.0
        )
        self.start, self.stop = self._progress.start, self._progress.stop
        self.print = self._progress.console.print

    def update(self, done: int, tokens: int, rate: float) -> None:
        """Sets the numbers to show at the next refresh."""
        self._progress.update(
            self._task, completed=done, done=f"{done:,}{self._of}", tokens=tokens, rate=rate
        )


@contextmanager
def shown_progress(total: int, show: bool) -> Iterator[Callable[[int, int], None]]:
    """Shows a bar on standard error while the block runs, if that is a terminal.

    A notebook's standard error is not a terminal, so that nothing is shown there.

    Args:
      total: the number of prompts.
      show: whether to show the bar.

    Yields:
      A function to call with the numbers of prompts and tokens finished since its last call.
    """
    bar = Bar(sys.stderr, total) if show and total and sys.stderr.isatty() else None
    started, prompts, tokens = time.perf_counter(), 0, 0

    def advance(new_prompts: int, new_tokens: int) -> None:
        nonlocal prompts, tokens
        prompts, tokens = prompts + new_prompts, tokens + new_tokens
        if bar is not None:
            seconds = time.perf_counter() - started
            bar.update(prompts, tokens, tokens / seconds if seconds else 0.0)

    if bar is not None:
        bar.start()
    try:
        yield advance
    finally:
        if bar is not None:
            bar.stop()
