import io
import sys

import pytest

from emsjax.loading.progress import progress_bar


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


@pytest.mark.parametrize(("stream", "shown"), [(io.StringIO, False), (Terminal, True)])
def test_a_bar_is_for_terminals_even_where_colours_are_forced(stream, shown, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in a notebook
    monkeypatch.setattr(sys, "stderr", stream())
    with progress_bar("reading") as progress:
        progress(1, 2)
    assert ("reading" in sys.stderr.getvalue()) == shown
