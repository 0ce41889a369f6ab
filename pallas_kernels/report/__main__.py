"""The command `python -m emsjax.pallas_kernels.report [--topology v5e] [--json FILE]`."""

import argparse
import importlib.metadata
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from emsjax.pallas_kernels.environment import tpu_compiler
from emsjax.pallas_kernels.report.work import MODELS, ragged

if TYPE_CHECKING:
    from emsjax.pallas_kernels.report.row import Row

GENERATIONS = ("v4", "v5e", "v5p", "v6e")


def main(arguments: list[str] | None = None) -> None:
    """Compiles the attention kernels for a TPU and prints a table of the results."""
    options = _options(arguments)
    with tempfile.TemporaryDirectory() as directory:
        rows = list(_rows(options, Path(directory)))
    facts = {"topology": options.topology, **vars(options)["work"], **_versions()}
    if options.json:
        content = {"settings": facts, "rows": [row._asdict() for row in rows]}
        text = json.dumps(content, indent=1, allow_nan=False)
        options.json.write_text(text + "\n", encoding="utf-8")
    print(_text(rows, facts))


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m emsjax.pallas_kernels.report",
        description="Compile the TPU attention kernels, ours and jax's, and count what they do.",
    )
    parser.add_argument("--topology", choices=GENERATIONS, default="v5e")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write all figures to this file"
    )
    parser.add_argument("--models", metavar="A,B", help="models to compile for; default: all")
    parser.add_argument("--batch", type=int, default=8, help="number of slots")
    parser.add_argument("--rows", type=int, default=8, help="most rows of a slot")
    parser.add_argument("--context", type=int, default=2048, help="most tokens of a slot")
    options = parser.parse_args(arguments)
    options.work = {name: getattr(options, name) for name in ("batch", "rows", "context")}
    if min(options.work.values()) < 1 or options.context < 2 * options.rows:
        parser.error("--batch, --rows and --context must be positive, --context twice --rows")
    options.models = options.models.split(",") if options.models else list(MODELS)
    if unknown := [model for model in options.models if model not in MODELS]:
        parser.error(f"--models: {unknown[0]!r} is unknown; choose from {', '.join(MODELS)}")
    return options


def _rows(options: argparse.Namespace, dump: Path) -> Iterator["Row"]:
    os.environ.update(tpu_compiler(dump))
    from emsjax.pallas_kernels.report import ours, peer

    for model in options.models:
        work = ragged(MODELS[model], **options.work)
        for kernel in (ours, peer):
            print(f"compiling {kernel.__name__.split('.')[-1]}: {model}", file=sys.stderr)
            yield from kernel.measure(options.topology, model, work, dump)


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}


def _text(rows: list["Row"], facts: dict[str, object]) -> str:
    from emsjax.pallas_kernels.report.row import table

    title = (
        f"Compiled for TPU {facts['topology']}, not run: {facts['batch']} slots of 1 to "
        f"{facts['rows']} rows, {int(str(facts['context'])) // 2} to {facts['context']} tokens, "
        f"bfloat16, one layer; jax {facts['jax']}, libtpu {facts['libtpu']}"
    )
    return f"{title}\n\n{table(rows)}"


if __name__ == "__main__":
    main()
