"""The command line of conversions: `python -m emsjax.convert SOURCE OUTPUT`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from emsjax.errors import UserError


def convert(
    source: Annotated[str, typer.Argument(help="Model directory, .gguf file or hub id.")],
    output: Annotated[Path, typer.Argument(help="Directory to make; it must not hold anything.")],
    dtype: Annotated[
        str, typer.Option(help="auto (the model's own), float32, bfloat16 or float16.")
    ] = "auto",
) -> None:
    """Convert a model to a checkpoint that loads fast: `--model OUTPUT` from then on."""
    from emsjax.loading.conversion import convert_model
    from emsjax.loading.load import find_model
    from emsjax.loading.progress import progress_bar

    try:
        with progress_bar(f"converting {source}") as progress:
            convert_model(find_model(source), output, dtype, progress)
    except UserError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None
    print(f"wrote {output}", file=sys.stderr)


def main() -> None:
    """Run the command line."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(convert)
    app()


if __name__ == "__main__":
    main()
