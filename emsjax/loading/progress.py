"""A progress bar on standard error."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress as Bars

from emsjax.loading.weights import Progress


@contextmanager
def progress_bar(label: str) -> Iterator[Progress]:
    """Shows a bar on standard error while the block runs; only a line if it is no terminal.

    Args:
      label: text in front of the bar.

    Yields:
      A function of (done, total) that updates the bar.
    """
    # `Console.is_terminal` would be wrong here: notebooks set FORCE_COLOR, which makes it report a
    # pipe as a terminal.
    hidden = not sys.stderr.isatty()
    said = False

    def show(done: int, total: int) -> None:
        nonlocal said
        if hidden and not said:
            print(label, file=sys.stderr, flush=True)
        said = True
        bars.update(task, completed=done, total=total)

    with Bars(console=Console(stderr=True), transient=True, disable=hidden) as bars:
        task = bars.add_task(label)
        yield show
