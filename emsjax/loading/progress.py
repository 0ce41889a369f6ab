"""A progress bar on standard error."""

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
    console = Console(stderr=True)
    with Bars(console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(label)
        yield lambda done, total: bars.update(task, completed=done, total=total)
