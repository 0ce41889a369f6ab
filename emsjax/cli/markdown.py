"""Markdown tables."""

import re
from collections.abc import Iterable, Sequence

# A number with an optional sign, thousands and decimals, and a unit: 1, -2.5, 1,024, 3x, 5 %.
_FIGURE = re.compile(r"[-+]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?\s?[%x]?")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Writes a Markdown table that is aligned as plain text, too.

    Args:
      header: names of the columns. Figures are aligned right, and so is every column but the first.
        The first is aligned left if it holds text.
      rows: cells as text, as many in each row as the header has.
    """
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    # A delimiter is at least three characters long.
    widths = [max(width, 3) for width in widths]
    right = [True for _ in widths]
    right[0] = len(lines) > 1 and all(_FIGURE.fullmatch(line[0]) for line in lines[1:])
    columns = list(zip(widths, right, strict=True))

    def written(line: list[str]) -> str:
        cells = zip(line, columns, strict=True)
        return _line(*(cell.rjust(w) if figures else cell.ljust(w) for cell, (w, figures) in cells))

    rule = _line(*("-" * (w - 1) + ":" if figures else "-" * w for w, figures in columns))
    head, *body = map(written, lines)
    return "\n".join((head, rule, *body))


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
