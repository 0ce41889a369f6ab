"""A progress bar on standard error."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress as Bars

from emsjax.loading.weights import Progress


@contextmanager
def progress_bar(label: str) -> Iterator[Progress]:
    """Shows a bar on standard error while the block runs; only a line if that is no terminal.

    Args:
      label: text in front of the bar.

    Yields:
      A function of (done, total) that updates the bar.
    """
    # `Console.is_terminal` would be wrong here: notebooks set FORCE_COLOR, which makes it report a
    # pipe as a terminal.
    hidden = not sys.stderr.isatty()
    if hidden:
        print(label, file=sys.stderr, flush=True)
    with Bars(console=Console(stderr=True), transient=True, disable=hidden) as bars:
        task = bars.add_task(label)
        yield lambda done, total: bars.update(task, completed=done, total=total)
