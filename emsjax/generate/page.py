"""The page of a run of the command line."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from emsjax.requests.outputs import RequestOutput


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
