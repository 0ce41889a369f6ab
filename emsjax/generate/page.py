"""The token view of a command-line run."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from emsjax.requests.outputs import RequestOutput


@contextmanager
def page_of_run(path: str | None, title: str) -> Iterator[Callable[[RequestOutput], None]]:
    """Collects finished requests and writes the page about them after the block.

    An error or interrupt also writes the page, unless no request has finished.

    Args:
      path: the file to write; None for no page.
      title: the title of the page.

    Yields:
      A function to call with each finished request.

    Raises:
      UserError: the page cannot be written.
    """
    if path is None:
        yield lambda _output: None
        return
    # Imported here because only --report needs jinja2.
    from emsjax.token_view.report import Report

    report = Report(title=title)

    def save() -> None:
        report.save(path)
        print(f"wrote the report to {path}", file=sys.stderr)

    try:
        # Request ids are JSON, see `jsonl.key`.
        yield lambda output: report.add(output, name=str(json.loads(output.request_id)))
    except BaseException:
        if report.totals.requests:
            save()
        raise
    if report.totals.requests or not Path(path).exists():
        save()
    else:
        print(f"no request was run; {path} is unchanged", file=sys.stderr)
