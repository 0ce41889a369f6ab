"""How a command declares an option."""

from typing import Any

import typer


def option(flag: str, text: str, panel: str, metavar: str | None = None, **more: Any) -> Any:
    """Returns a typer option.

    Args:
      flag: its name, such as `--model`.
      text: its line in `--help`.
      panel: the heading above it in `--help`.
      metavar: what stands for its value in `--help`.
      more: further arguments of `typer.Option`.
    """
    return typer.Option(flag, help=text, rich_help_panel=panel, metavar=metavar, **more)


def number(flag: str, text: str, panel: str, kind: type[int] | type[float] = int) -> Any:
    """Returns an option that takes a number; other text is refused by what was given."""

    def parse(value: object) -> float:
        try:
            return kind(str(value))
        except ValueError:
            noun = "whole number" if kind is int else "number"
            raise typer.BadParameter(f"{value!r} is not a {noun}") from None

    return option(flag, text, panel, "N", parser=parse)
