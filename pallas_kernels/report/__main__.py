"""The command `python -m emsjax.pallas_kernels.report [--topology v5e] [--json FILE]`.

For a TPU it compares our attention kernel with jax's. For a GPU it says what each of our kernels
takes of a multiprocessor.
"""

import argparse
import importlib.metadata
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emsjax.pallas_kernels.environment import tpu_compiler
from emsjax.pallas_kernels.gpu_targets import GPUS
from emsjax.pallas_kernels.report.work import MODELS, ragged

if TYPE_CHECKING:
    from emsjax.pallas_kernels.report.gpu_kernels import GPURow
    from emsjax.pallas_kernels.report.row import Row

GENERATIONS = ("v4", "v5e", "v5p", "v6e")
# The compilers' packages. The last is that of NVIDIA's assembler.
TPU_PACKAGES, GPU_PACKAGES = ("libtpu",), ("jax-cuda13-plugin", "nvidia-cuda-nvcc")


def main(arguments: list[str] | None = None) -> None:
    """Compiles kernels for a TPU or GPU and prints a table of the results."""
    options = _options(arguments)
    on_gpu = options.topology in GPUS
    facts = {"topology": options.topology, **options.work}
    facts |= _versions("jax", *(GPU_PACKAGES if on_gpu else TPU_PACKAGES))
    records, text = (_report_gpu if on_gpu else _report_tpu)(options)
    if options.json:
        content = {"settings": facts, "rows": records}
        written = json.dumps(content, indent=1, allow_nan=False)
        options.json.write_text(written + "\n", encoding="utf-8")
    print(f"{_title(facts)}\n\n{text}")


def _report_tpu(options: argparse.Namespace) -> tuple[list[dict[str, Any]], str]:
    """Returns the rows as JSON objects, and the table."""
    from emsjax.pallas_kernels.report.row import table

    with tempfile.TemporaryDirectory() as directory:
        rows = list(_tpu_rows(options, Path(directory)))
    return [row._asdict() for row in rows], table(rows)


def _report_gpu(options: argparse.Namespace) -> tuple[list[dict[str, Any]], str]:
    """Returns the rows as JSON objects, and the table."""
    os.environ.update(tpu_compiler())
    # The compiler says for every kernel that it has no disassembler.
    os.environ.update({"TF_CPP_MIN_LOG_LEVEL": "3", "JAX_ENABLE_COMPILATION_CACHE": "false"})
    from emsjax.pallas_kernels.report.gpu_kernels import HEADER, GPURow
    from emsjax.pallas_kernels.report.row import written

    rows = list(_gpu_rows(options))
    if not rows:
        return [], "No kernel of ours takes this GPU. XLA computes everything."
    return [row.record() for row in rows], written(HEADER, map(GPURow.cells, rows), texts=3)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m emsjax.pallas_kernels.report",
        description="For a TPU: compile the attention kernels, ours and jax's, and count what they "
        "do. For a GPU: compile our kernels, and list their registers and shared memory.",
    )
    parser.add_argument("--topology", choices=(*GENERATIONS, *GPUS), default="v5e")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write all figures to this file"
    )
    parser.add_argument(
        "--ours", action="store_true", help="for a TPU: leave out jax's kernel, which takes longer"
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


def _tpu_rows(options: argparse.Namespace, dump: Path) -> Iterator["Row"]:
    os.environ.update(tpu_compiler(dump))
    from emsjax.pallas_kernels.report import ours, peer

    for model in options.models:
        work = ragged(MODELS[model], **options.work)
        for kernel in (ours,) if options.ours else (ours, peer):
            print(f"compiling {kernel.__name__.split('.')[-1]}: {model}", file=sys.stderr)
            yield from kernel.measure(options.topology, model, work, dump)


def _gpu_rows(options: argparse.Namespace) -> Iterator["GPURow"]:
    from emsjax.pallas_kernels.report import gpu_kernels

    for model in options.models:
        print(f"compiling: {model}", file=sys.stderr)
        work = ragged(MODELS[model], **options.work)
        yield from gpu_kernels.measure(options.topology, model, work)


def _versions(*packages: str) -> dict[str, str]:
    try:
        return {name: importlib.metadata.version(name) for name in packages}
    except importlib.metadata.PackageNotFoundError as error:
        sys.exit(
            f"compiling needs the package {error.name}; install emsjax with its extra [tpu] for a "
            "TPU, [gpu-compiler] for a GPU"
        )


def _title(facts: dict[str, Any]) -> str:
    packages = ("jax", *TPU_PACKAGES, *GPU_PACKAGES)
    versions = ", ".join(f"{name} {facts[name]}" for name in packages if name in facts)
    platform = "" if facts["topology"] in GPUS else "TPU "
    return (
        f"Compiled for {platform}{facts['topology']}, not run: {facts['batch']} slots of 1 to "
        f"{facts['rows']} rows, {facts['context'] // 2} to {facts['context']} tokens, "
        f"bfloat16, one layer; {versions}"
    )


if __name__ == "__main__":
    main()
