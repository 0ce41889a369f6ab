"""Markdown tables."""

from markdown_it import MarkdownIt

from emsjax.cli.markdown import table


def test_columns_are_aligned_as_text_and_as_html():
    lines = table(["x", "tokens/s"], [["plain", "1.0"], ["ems", "12.5"]]).splitlines()
    assert lines == [
        "| x     | tokens/s |",
        "| ----- | -------: |",
        "| plain |      1.0 |",
        "| ems   |     12.5 |",
    ]
    html = MarkdownIt().enable("table").render("\n".join(lines))
    assert "<th>x</th>" in html
    assert '<td style="text-align:right">12.5</td>' in html


def test_a_first_column_of_figures_is_aligned_right():
    lines = table(["batch", "x"], [["1", "1.0"], ["1,024", "12.5"]]).splitlines()
    assert lines[1:] == ["| ----: | ---: |", "|     1 |  1.0 |", "| 1,024 | 12.5 |"]
    assert table(["model", "x"], [["1", "1"], ["7b", "2"]]).splitlines()[1] == "| ----- | --: |"


def test_a_table_without_rows_or_with_narrow_columns_is_a_table():
    assert table(["", "1"], []) == "|     |   1 |\n| --- | --: |"
