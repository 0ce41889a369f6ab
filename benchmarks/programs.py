"""What the compilers make of the decode program on TPUs and GPUs that are not there.

python -m benchmarks.programs

Each model is compiled for each chip with two rungs: plain decoding, and 8 rows a slot. A program is
compiled once: a later run keeps what it finds in the JSON file, unless `--again` is given.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.common import say, write_json
from emsjax.cli.markdown import table
from emsjax.costs.hardware import HARDWARE
from emsjax.host.provenance import commit_of, version_of
from emsjax.loading.named import named_config
from emsjax.pallas_kernels.environment import tpu_compiler
from emsjax.plan.estimate import estimate
from emsjax.plan.setting import Setting

MODELS = ("smollm2-135m", "llama-3.2-1b", "llama-3-8b")
CHIPS = ("v5e", "v6e", "v5p", "h100", "a100", "l4", "t4")
# Batches to try, and the tokens of a slot.
SLOTS, CAPACITY, DRAFT_LENGTH = (8, 3), 2048, 7
PACKAGES = ("jax", "libtpu", "jax-cuda13-plugin", "nvidia-cuda-nvcc")
HEADER = ("model", "chip", "slots", "rows", "cycles / least", "launches a layer", "bytes / least")
HEADER += ("temporary MB", "weights copied", "seconds to compile")
NOTES = """\
Compiled, never run. Figures in brackets are those of the first time that the cell was compiled,
where they differ. Each slot has 2,048 tokens, and numbers are bfloat16, on a T4 float16.

- *cycles / least*: the TPU compiler's estimate of the forward pass without hand-written kernels,
  divided by the cycles in which the weights cross the memory at its published bandwidth. What the
  kernels of a layer take is in `pallas_kernels/README.md`.
- *launches a layer*: operations that a device starts for a layer, hand-written kernels included.
  Inner loops count as one.
- *bytes / least*: what all operations of the forward pass read from memory and write to it, divided
  by the bytes of the weights. The K/V cache, inner loops, and what stays on the chip are left out:
  where attention was such a loop, the figure in brackets knows nothing of it.
- *temporary MB*: of the whole program with both rungs.
- *weights copied*: arrays of weights that are written again, in a step or once a call."""


def main() -> None:
    """Compiles what is not in the JSON file yet, and writes the table."""
    options = _options()
    file = options.output.with_suffix(".json")
    cells: dict[str, Any] = json.loads(file.read_text())["cells"] if file.exists() else {}
    for setting in _settings(options.models, options.chips):
        name = f"{setting.name} {setting.topology}"
        old = cells.get(name)
        if old is not None and not options.again:
            continue
        say(f"compiling {name}")
        cells[name] = _compile(setting)
        if old is not None:
            cells[name]["first"] = old.get("first", old["rungs"])
        write_json(file, {"benchmark": "programs", "cells": cells})
    options.output.write_text(_page(cells))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=lambda text: text.split(","), default=MODELS)
    parser.add_argument("--chips", type=lambda text: text.split(","), default=CHIPS)
    parser.add_argument("--again", action="store_true", help="compile even what is in the file")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/programs.md"))
    return parser.parse_args()


def _settings(models: list[str], chips: list[str]) -> Iterator[Setting]:
    """Yields each model on each chip with the largest batch that fits, if one does."""
    for model in models:
        for chip in chips:
            settings = (_setting(model, chip, slots) for slots in SLOTS)
            if setting := next(filter(_fits, settings), None):
                yield setting


def _setting(model: str, chip: str, slots: int) -> Setting:
    return Setting(
        name=model,
        config=named_config(model),
        topology=chip,
        hardware=HARDWARE[chip],
        num_slots=slots,
        max_model_len=CAPACITY,
        context=CAPACITY // 2,
        dtype="float16" if chip == "t4" else "bfloat16",
        acceptance=0.7,
        draft_length=DRAFT_LENGTH,
    )


def _fits(setting: Setting) -> bool:
    # Imported here because the environment must be prepared before jax is imported.
    from emsjax.plan.program import usable_bytes

    memory = estimate(setting).memory
    return memory.total - memory.temporaries <= usable_bytes(setting)


def _compile(setting: Setting) -> dict[str, Any]:
    """Returns the figures of a program."""
    from emsjax.plan.copies import copied_weights
    from emsjax.plan.cycles import read_cycles
    from emsjax.plan.loops import computations, layer_bodies, rung_bodies
    from emsjax.plan.program import compile_rungs
    from emsjax.plan.traffic import Traffic, launches

    plain, *others = setting.ladder()
    rungs = plain, [rung for rung in others if rung.max_q_len == DRAFT_LENGTH + 1][-1]
    started = time.monotonic()
    engine, compiled = compile_rungs(setting, rungs)
    seconds = time.monotonic() - started
    text, layers = compiled.as_text() or "", setting.config.num_layers
    program = computations(text)
    traffic = Traffic(program, layers, engine.cache_spec.shape)
    hardware, least = setting.hardware, setting.sizes().read_bytes
    cycles = read_cycles(text, len(rungs), layers) if hardware.hertz else None
    found = []
    for number, (rung, body) in enumerate(zip(rungs, rung_bodies(program), strict=True)):
        (layer,) = layer_bodies(program, body)
        figures = {
            "rows": rung.capacity,
            "bytes": traffic.of(body) + layers * traffic.of(layer),
            "cycles": cycles and cycles.rungs[number],
            "launches_a_layer": launches(program[layer]),
        }
        found.append(figures)
    return {
        "model": setting.name,
        "chip": setting.topology,
        "slots": setting.num_slots,
        "dtype": setting.dtype,
        "rungs": found,
        "least_bytes": least,
        "least_cycles": math.ceil(least / hardware.bytes_per_second * hardware.hertz),
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "copied": copied_weights(text, engine.params),
        "compile_seconds": round(seconds, 1),
        "versions": {name: version_of(name) for name in PACKAGES},
        "commit": commit_of(__file__, ("emsjax", "models", "pallas_kernels")),
    }


def _page(cells: dict[str, Any]) -> str:
    """Returns the Markdown page."""
    order = [f"{model} {chip}" for model in MODELS for chip in CHIPS]
    known = sorted(cells, key=lambda name: order.index(name) if name in order else len(order))
    rows = (row for name in known for row in _rows(cells[name]))
    # An environment without the compiler for GPUs knows fewer versions.
    every = {tuple(x for x in cell["versions"].items() if x[1]) for cell in cells.values()}
    versions = [some for some in every if not any(set(some) < set(more) for more in every)]
    of_each = "\n".join(
        f"Versions: {', '.join(f'{name} {version}' for name, version in found)}."
        for found in sorted(versions)
    )
    title = "# What the compilers make of the decode program"
    made = (
        "Made by `python -m benchmarks.programs`, and for models with norms of their queries by\n"
        "`python -m benchmarks.programs --models qwen3-4b,gemma-3-4b --chips v5e,v6e`."
    )
    return "\n\n".join([title, NOTES, made, table(HEADER, rows), of_each]) + "\n"


def _rows(cell: dict[str, Any]) -> Iterator[list[str]]:
    for now, first in zip(cell["rungs"], cell.get("first", cell["rungs"]), strict=True):
        yield [
            cell["model"],
            cell["chip"],
            str(cell["slots"]),
            str(now["rows"]),
            _figure(now, first, "cycles", cell["least_cycles"], ".2f"),
            _figure(now, first, "launches_a_layer", 1, ".0f"),
            _figure(now, first, "bytes", cell["least_bytes"], ".2f"),
            f"{cell['temporary_bytes'] / 1e6:.0f}",
            str(len(cell["copied"])),
            f"{cell['compile_seconds']:.0f}",
        ]


def _figure(now: dict[str, Any], first: dict[str, Any], name: str, unit: float, digits: str) -> str:
    """Returns a figure in a unit, and in brackets that of the first time if it was another."""
    if now[name] is None:
        return "-"
    # What was not counted at first has no figure in brackets.
    first = now if first[name] is None else first
    shown, before = (format(each[name] / unit, digits) for each in (now, first))
    return shown if shown == before else f"{shown} ({before})"


if __name__ == "__main__":
    import os

    os.environ.update(tpu_compiler())
    # The cache can store programs for absent devices but cannot load them.
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    main()
