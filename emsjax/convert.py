"""The command line for converting models: `python -m emsjax.convert SOURCE OUTPUT`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from emsjax.cli import command

_app = command.new_app()


@_app.command()
def convert(
    source: Annotated[str, typer.Argument(help="Model directory, .gguf file or hub id.")],
    output: Annotated[Path, typer.Argument(help="Directory to create; must be empty or missing.")],
    dtype: Annotated[
        str, typer.Option(help="auto (the model's own), float32, bfloat16 or float16.")
    ] = "auto",
    quantize: Annotated[
        str | None,
        typer.Option(
            metavar="KIND", help="int8: turn weights into int8. int4: keep 4 bits. none: floats."
        ),
    ] = None,
) -> None:
    """Convert a model to a checkpoint that loads fast, for use as `--model OUTPUT`."""
    from emsjax.loading.conversion import convert_model
    from emsjax.loading.load import find_model
    from emsjax.loading.progress import progress_bar

    with progress_bar(f"converting {source}") as progress:
        convert_model(find_model(source), output, dtype, progress, quantize)
    print(f"wrote {output}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status; `emsjax.cli.command` lists them."""
    return command.run(lambda: command.parse(_app, "convert", arguments), _app)


if __name__ == "__main__":
    sys.exit(main())
