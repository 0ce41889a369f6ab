"""Markdown tables."""

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Writes a Markdown table that is aligned as plain text, too.

    Args:
      header: names of the columns. The first column is aligned left, for text; the others right,
        for figures.
      rows: cells as text, as many in each row as the header has.
    """
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    # A delimiter is at least three characters long.
    first, *others = [max(width, 3) for width in widths]
    head, *body = [_line(line[0].ljust(first), *map(str.rjust, line[1:], others)) for line in lines]
    rule = _line("-" * first, *("-" * (width - 1) + ":" for width in others))
    return "\n".join((head, rule, *body))


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
