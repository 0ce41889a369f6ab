"""The option that says how many devices share a model, which several commands have."""

from typing import Any

import typer

from emsjax.cli.declare import option


def devices_option(panel: str) -> Any:
    """Returns the option, whose value is a whole number or "auto".

    Args:
      panel: the part of the help that it belongs to.
    """
    text = "Devices that share the model, or auto. (default: 1)"
    return option("--tensor-parallel", text, panel, "N", parser=_parse)


def _parse(value: object) -> int | str:
    if value == "auto":
        return "auto"
    try:
        return int(str(value))
    except ValueError:
        raise typer.BadParameter(f"{value!r} is neither a whole number nor auto") from None
