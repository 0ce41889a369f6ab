"""`Report` collects finished requests and shows them."""

import html
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from emsjax.engine.metrics import RunTotals
from emsjax.engine.trace import Source
from emsjax.errors import UserError, check_whole
from emsjax.requests.outputs import RequestOutput
from emsjax.token_view.file import write_page
from emsjax.token_view.page import render
from emsjax.token_view.shown import ShownOutput, shown_outputs

# More would make a file of many megabytes that is too long to read.
MOST_OUTPUTS = 200


class Report:
    """A page about finished requests, with texts coloured by the origin of each token.

    The page also shows the rejected drafts, the tokens of each step, the use of the slots over the
    run, and statistics. A notebook displays it if it is the last expression of a cell; `save`
    writes it to one file that needs no network.

    Memory is bounded: the first requests are kept in full, and the others only as sums.
    """

    def __init__(
        self,
        outputs: RequestOutput | Iterable[RequestOutput] = (),
        *,
        title: str = "Token view",
        most_outputs: int = MOST_OUTPUTS,
    ):
        """Starts with the outputs of an `LLM` made with `trace=True`.

        Args:
          outputs: one finished request or several; `add` takes more.
          title: the title of the page.
          most_outputs: the number of texts after which no further request is shown. All outputs
            of the last request are shown, even if that makes more.

        Raises:
          UserError: an output has no trace, or `most_outputs` is below 1.
        """
        check_whole("most_outputs", most_outputs, 1)
        self.title = title
        self._most = most_outputs
        self._totals = RunTotals()
        self._sources: Counter[Source] = Counter()
        self._shown: list[ShownOutput] = []
        self._shown_requests = 0
        for output in [outputs] if isinstance(outputs, RequestOutput) else outputs:
            self.add(output)

    @property
    def totals(self) -> RunTotals:
        """Sums over all requests, shown or not."""
        return self._totals

    @property
    def sources(self) -> Mapping[Source, int]:
        """The number of tokens from each source (see `Trace.sources`), over all requests."""
        return dict(self._sources)

    def add(self, output: RequestOutput, name: str | None = None) -> None:
        """Adds a finished request.

        Args:
          output: the request, with traces.
          name: its name on the page; its `request_id` by default.

        Raises:
          UserError: the request has no trace.
        """
        for completion in output.outputs:
            if completion.trace is None:
                raise UserError(
                    f"the output of request {output.request_id} has no trace; make the LLM with "
                    "trace=True"
                )
            self._sources.update(completion.trace.sources)
        self._totals.add(output.metrics)
        if len(self._shown) < self._most:
            name = output.request_id if name is None else name
            self._shown += shown_outputs(output, name, first=len(self._shown))
            self._shown_requests += 1

    def html(self) -> str:
        """Renders the page, with texts in the order in which they entered their slots."""
        shown = sorted(self._shown, key=_admission)
        return render(self.title, self._totals, self._sources, shown, self._shown_requests)

    def save(self, path: str | Path) -> None:
        """Writes the page to one file, replacing any existing one.

        Raises:
          UserError: the file cannot be written.
        """
        write_page(Path(path), self.html())

    def _repr_html_(self) -> str:
        """Renders the page in a frame, so that its style and the notebook's do not mix."""
        page = html.escape(self.html())
        style = "width: 100%; height: 720px; border: 0; resize: vertical"
        return (
            f'<iframe title="{html.escape(self.title)}" style="{style}" '
            f'sandbox="allow-scripts" srcdoc="{page}"></iframe>'
        )


def _admission(output: ShownOutput) -> tuple[float, int, int]:
    trace = output.trace
    return trace.run_began, trace.first_step, trace.slot
