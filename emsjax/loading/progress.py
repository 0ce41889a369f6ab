"""A progress bar on standard error."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress as Bars

from emsjax.loading.weights import Progress


@contextmanager
def progress_bar(label: str) -> Iterator[Progress]:
    """Shows a bar while the block runs, and nothing where standard error is no terminal.

    Yields:
      A function of (done, total).
    """
    # Not the console's own word: notebooks set FORCE_COLOR, and it takes a pipe for a terminal.
    hidden = not sys.stderr.isatty()
    with Bars(console=Console(stderr=True), transient=True, disable=hidden) as bars:
        task = bars.add_task(label)
        yield lambda done, total: bars.update(task, completed=done, total=total)
