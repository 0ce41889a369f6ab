"""Whether models fit on TPU chips that are not there, and how long a step takes.

python -m benchmarks.plans

Three models are planned in bfloat16 and with weights in int8 and in 4 bits, for each chip, and a
large one for slices of eight chips. A plan is made once: a later run keeps what it finds there,
unless `--again` is given. The tables of `docs/planning-hardware.md` and the README are printed.
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common import say
from emsjax.cli.markdown import table
from emsjax.host.json_text import to_json
from emsjax.host.provenance import commit_of

NAMES = {"opt-6.7b": "OPT-6.7B", "llama-3-8b": "Llama-3-8B", "smollm2-135m": "SmolLM2-135M"}
LARGE = {"llama-3-70b": "Llama-3-70B"}
CHIPS = ("v5e", "v6e")
WEIGHTS = ("bfloat16", "int8", "int4")
# Slices that hold the large model with these weights.
SLICES = (("v6e-8", "bfloat16"), ("v5e-8", "int8"))
BATCH_SIZE, MAX_MODEL_LEN, CONTEXT = 8, 2048, 1024
ACCEPTANCE, DRAFT_LENGTH = 0.7, 7
FILE = Path("benchmarks/results/plans.json")
HEADER = ("model", "weights", "chip", "do 8 samples fit", "largest batch", "step of batch")
HEADER += ("plain, ms", "whole drafts, ms", "speedup")
SLICE_HEADER = ("model", "weights", "chips", "do 8 samples fit on each", "largest batch")
SLICE_HEADER += ("plain, ms", "of these exchanges", "whole drafts, ms", "speedup")


class Cell(NamedTuple):
    """What a plan is for: a model, one chip or a slice, and one of `WEIGHTS`."""

    model: str
    chip: str
    weights: str


def cells() -> Iterator[Cell]:
    """Yields what is planned, in the table's order."""
    for model in NAMES:
        for chip in CHIPS:
            for weights in WEIGHTS:
                yield Cell(model, chip, weights)
    for model in LARGE:
        for chips, weights in SLICES:
            yield Cell(model, chips, weights)


def cell_of(plan: dict[str, Any]) -> Cell:
    """Returns what a plan in the JSON file is for."""
    return Cell(plan["model"], plan["topology"], plan["quantize"] or plan["dtype"])


def page(plans: list[dict[str, Any]]) -> str:
    """Returns the plans for one chip as a Markdown table."""
    return table(HEADER, map(_row, _of(NAMES, plans)))


def slices(plans: list[dict[str, Any]]) -> str:
    """Returns the plans for slices as a Markdown table."""
    return table(SLICE_HEADER, map(_slice_row, _of(LARGE, plans)))


def _of(names: Mapping[str, str], plans: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [plan for plan in plans if plan["model"] in names]


def summary(plans: list[dict[str, Any]]) -> str:
    """Returns what matters most on one chip as a Markdown table with columns for all weights.

    Steps are plain ones of the largest batch up to 8, as the compiler expects them.
    """
    plans = _of(NAMES, plans)
    known = {cell_of(plan): plan for plan in plans}
    header = ["model", "chip"]
    header += [f"{name}: {weights}" for name in _SHORT for weights in WEIGHTS]
    rows = []
    for model, chip in dict.fromkeys((plan["model"], plan["topology"]) for plan in plans):
        both = [known[Cell(model, chip, weights)] for weights in WEIGHTS]
        figures = [figure(plan) for figure in _SHORT.values() for plan in both]
        rows.append([NAMES[model], f"{chip}-1", *figures])
    return table(header, rows)


def _plain_ms(plan: dict[str, Any]) -> str:
    batch, seconds = plan["step_batch_size"], plan["steps"][0]["compiler_seconds"]
    return f"{1e3 * seconds:#.3g}" + ("" if batch == BATCH_SIZE else f" (batch {batch})")


def _speedup(plan: dict[str, Any]) -> dict[str, Any]:
    batch = plan["step_batch_size"]
    return next(each for each in plan["speedups"] if each["batch_size"] == batch)


_SHORT = {
    "largest batch": lambda plan: str(plan["largest_batch_size"]),
    "plain step, ms": _plain_ms,
    "speedup": lambda plan: f"{_speedup(plan)['by_compiler']['planned']:.2f}",
}


def _row(plan: dict[str, Any]) -> list[str]:
    needed, there = plan["memory"]["total"] / 1e9, plan["usable_bytes"] / 1e9
    plain, *_, widest = (step for step in plan["steps"] if step["purpose"] != "prompts")
    speedup = _speedup(plan)
    return [
        NAMES[plan["model"]],
        cell_of(plan).weights,
        f"{plan['topology']}-1",
        f"{'yes' if plan['fits'] else 'no'}: {needed:.1f} of {there:.1f} GB",
        str(plan["largest_batch_size"]),
        str(plan["step_batch_size"]),
        _step_ms(plain),
        _step_ms(widest),
        _both(f"{speedup['counted']['planned']:.2f}", f"{speedup['by_compiler']['planned']:.2f}"),
    ]


def _slice_row(plan: dict[str, Any]) -> list[str]:
    needed, there = plan["memory"]["total"] / 1e9, plan["usable_bytes"] / 1e9
    plain, *_, widest = (step for step in plan["steps"] if step["purpose"] != "prompts")
    speedup = _speedup(plan)
    return [
        LARGE[plan["model"]],
        cell_of(plan).weights,
        plan["topology"],
        f"{'yes' if plan['fits'] else 'no'}: {needed:.1f} of {there:.1f} GB",
        str(plan["largest_batch_size"]),
        _step_ms(plain),
        f"{1e3 * plain['exchange_seconds']:#.3g}",
        _step_ms(widest),
        _both(f"{speedup['counted']['planned']:.2f}", f"{speedup['by_compiler']['planned']:.2f}"),
    ]


def _step_ms(step: dict[str, Any]) -> str:
    return _both(*(f"{1e3 * step[each]:#.3g}" for each in ("seconds", "compiler_seconds")))


def _both(counted: str, by_compiler: str) -> str:
    return f"{counted} ({by_compiler})"


def main() -> None:
    """Makes the plans that are not in the JSON file yet, and prints the table."""
    options = _options()
    found = json.loads(options.output.read_text()) if options.output.exists() else []
    plans = {cell_of(plan): plan for plan in found}
    for cell in cells():
        chosen = (options.models, options.chips, options.weights)
        wanted = all(part in parts for part, parts in zip(cell, chosen, strict=True))
        if wanted and (options.again or cell not in plans):
            plans[cell] = _plan(cell)
            ordered = [plans[each] for each in cells() if each in plans]
            options.output.write_text(to_json(ordered, indent=1) + "\n")
    found = [plans[each] for each in cells() if each in plans]
    print(page(found))
    if len(found) == len(list(cells())):
        print(f"\n{summary(found)}\n\n{slices(found)}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=lambda text: text.split(","), default=[*NAMES, *LARGE])
    chips = [*CHIPS, *(chips for chips, _ in SLICES)]
    parser.add_argument("--chips", type=lambda text: text.split(","), default=chips)
    parser.add_argument("--weights", type=lambda text: text.split(","), default=WEIGHTS)
    parser.add_argument("--again", action="store_true", help="plan even what is in the file")
    parser.add_argument("--output", type=Path, default=FILE)
    return parser.parse_args()


def _plan(cell: Cell) -> dict[str, Any]:
    # Imported here because the environment must be prepared before jax is imported.
    from emsjax.plan.options import Options, make_forecasts
    from emsjax.plan.record import record
    from emsjax.plan.slices import slice_named

    options = Options(
        batch_size=BATCH_SIZE,
        max_model_len=MAX_MODEL_LEN,
        context=CONTEXT,
        dtype="bfloat16",
        quantize=None if cell.weights == "bfloat16" else cell.weights,
        kv_dtype=None,
        acceptance=ACCEPTANCE,
        draft_length=DRAFT_LENGTH,
        compile=True,
    )
    (forecast,) = make_forecasts([cell.model], [slice_named(cell.chip)], options, say)
    return record(forecast) | {
        "commit": commit_of(__file__, ("emsjax", "models", "pallas_kernels"))
    }


if __name__ == "__main__":
    import os

    from emsjax.pallas_kernels.environment import tpu_compiler

    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.update(tpu_compiler())
    # The cache can store programs for absent devices but cannot load them.
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    main()
