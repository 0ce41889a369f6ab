import io
import sys

import pytest

from emsjax.loading.progress import progress_bar


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self):
        return True


@pytest.mark.parametrize(("stream", "shown"), [(io.StringIO, False), (Terminal, True)])
def test_the_bar_is_shown_only_on_terminals_even_if_colours_are_forced(stream, shown, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in a notebook
    monkeypatch.setattr(sys, "stderr", stream())
    with progress_bar("reading") as progress:
        progress(1, 2)
        progress(2, 2)
    assert ("━" in sys.stderr.getvalue()) == shown
    assert shown or sys.stderr.getvalue() == "reading\n"


def test_work_that_never_starts_is_not_told(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress_bar("reading"):
        pass
    assert sys.stderr.getvalue() == ""
