"""The file of a page, and the page of a run of the command line."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from emsjax.errors import UserError
from emsjax.outputs import RequestOutput
from emsjax.whole_files import replace_text


def check_page(file: Path) -> None:
    """Refuses a file that no page can be written to, before anything is computed.

    Raises:
      UserError: it is a directory or a device, or its directory is not there.
    """
    if file.exists() and not file.is_file():
        raise _unwritable(file, "it is no regular file")
    if not file.resolve().parent.is_dir():
        raise _unwritable(file, f"there is no directory {str(file.parent)!r}")


def write_page(file: Path, page: str) -> None:
    """Writes a page in the place of what is there.

    Raises:
      UserError: it cannot be written.
    """
    check_page(file)
    try:
        replace_text(file.resolve(), page)
    except OSError as error:
        raise _unwritable(file, error.strerror or str(error)) from error


def _unwritable(file: Path, why: str) -> UserError:
    return UserError(f"cannot write the report to {str(file)!r} ({why}); name another file.")


@contextmanager
def page_of_run(path: str | None, title: str) -> Iterator[Callable[[RequestOutput], None]]:
    """Takes finished requests and writes the page on them at the end, also of an interrupted run.

    Args:
      path: where; None for no page.
      title: of the page.

    Yields:
      What takes them.

    Raises:
      UserError: the page cannot be written.
    """
    if path is None:
        yield lambda _output: None
        return
    # Here and not above: without --report nothing of it is needed.
    from emsjax.token_view.report import Report

    report = Report(title=title)

    def save() -> None:
        report.save(path)
        print(f"the report is in {path}", file=sys.stderr)

    try:
        # The ids of the command line are JSON, see `jsonl.key`.
        yield lambda output: report.add(output, name=str(json.loads(output.request_id)))
    except BaseException:
        if report.totals.requests:
            save()
        raise
    if report.totals.requests or not Path(path).exists():
        save()
    else:
        print(f"no request was run: {path} is left as it is", file=sys.stderr)
