"""Cells as records: what `results.json` holds."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emsjax.bench.cells import Cell, Spread
from emsjax.bench.contenders import PLAIN
from emsjax.bench.peer import PEER
from emsjax.errors import UserError
from emsjax.host.device import device_name
from emsjax.host.provenance import commit_of, version_of
from emsjax.version import __version__

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "transformers", "torch", "libtpu")
# Folders of the repository whose changes may change a figure.
CODE = ("emsjax", "models", "pallas_kernels")
Record = dict[str, Any]


def records_of(cells: Sequence[Cell], facts: Mapping[str, Any]) -> list[Record]:
    """The cells of one batch size.

    Args:
      cells: with those of plain decoding among them.
      facts: of the run, for every record.
    """
    plain = {cell.dataset: cell for cell in cells if cell.spec.method == PLAIN}
    records = [_record(cell, plain[cell.dataset]) | dict(facts) for cell in cells]
    for record in records:
        if record["method"] == PEER.method and record["simulated"]:
            record["prompts_differing"] = None  # it has weights of its own, and no script
    return records


def read_records(file: Path) -> list[Record]:
    """Those of an earlier run.

    Raises:
      UserError: they are damaged.
    """
    try:
        records = json.loads(file.read_text(encoding="utf-8"))
        if all(record.keys() >= set(_FIGURES) for record in records):
            return records
    except (OSError, ValueError, AttributeError, TypeError):
        pass
    raise UserError(f"{file} holds no results that could be added to: name another --output")


def run_facts() -> Record:
    """What the records of all runs on this machine have in common."""
    versions = {name: version_of(name) for name in PACKAGES}
    return {
        "commit": commit_of(__file__, CODE),
        "device": device_name(),
        "versions": {"emsjax": __version__, **{n: v for n, v in versions.items() if v}},
    }


# Records that differ in one of these do not belong into one table.
ALIKE = ("model", "dtype", "simulated", "device", "versions", "texts", "draft_model")


def check_alike(earlier: Sequence[Record], facts: Mapping[str, Any]) -> None:
    """Whether records with these facts may be added.

    Raises:
      UserError: the earlier ones are of another model, device, or kind of text.
    """
    for field in ALIKE:
        if found := [r for r in earlier if r.get(field) != facts[field]]:
            raise UserError(
                f"these results cannot be added to those of another {field}: there it is "
                f"{found[0].get(field)}, here {facts[field]}; name another --output"
            )


def merge(earlier: Sequence[Record], newer: Sequence[Record]) -> list[Record]:
    """All records by batch size; newer ones take the place of all of their batch size and dataset.

    Speedups are over plain decoding beside them, in the same run: none may outlive it. Where plain
    decoding has failed this time there are none, and figures that were there stay.
    """
    lost = {_place(r) for r in newer if r["method"] == PLAIN and r["error"]}
    better = lost & {_place(r) for r in earlier if r["method"] == PLAIN and not r["error"]}
    newer = [record for record in newer if _place(record) not in better]
    anew = {_place(record) for record in newer}
    kept = [record for record in earlier if _place(record) not in anew]
    return sorted([*kept, *newer], key=lambda record: record["batch_size"])


def _place(record: Record) -> tuple[int, str]:
    return record["batch_size"], record["dataset"]


def _record(cell: Cell, plain: Cell) -> Record:
    """Every record has the same fields; those without a figure are None."""
    record: Record = {
        "method": cell.spec.method,
        "drafter": cell.spec.drafter,
        "planner": cell.spec.planned,
        "batch_size": cell.batch_size,
        "dataset": cell.dataset,
        "error": cell.error,
        **dict.fromkeys(_FIGURES),
    }
    if not cell.measured:
        return record
    record |= _speeds(cell, plain) | cell.facts
    if cell.spec != PEER:
        record |= _counts(cell) | {"limit_share": cell.limit_share}
    if cell.parts is not None:
        record |= {"parts": cell.parts.seconds, "unused_rows": cell.parts.unused_rows}
    return record


_SPEEDS = ("tokens_per_second", "decode_tokens_per_second", "speedup", "decode_speedup")
_FIGURES = (
    *_SPEEDS,
    *(f"{name}_spread" for name in _SPEEDS),
    "tokens_per_step",
    "input_padding",
    "cache_padding",
    "unused_rows",
    "drafted_by_position",
    "accepted_by_position",
    "parts",
    "limit_share",
    "prefill_seconds",
    "compile_seconds",
    "peak_memory_bytes",
    "attention",
    "prompts",
    "tokens",
    "prompts_differing",
)


def _speeds(cell: Cell, plain: Cell) -> Record:
    """Rates, and how many times those of plain decoding they are, repetition by repetition."""
    values = _rates(cell)
    if plain.measured:
        theirs = _rates(plain)
        values |= {
            speedup: [a / b for a, b in zip(values[rate], theirs[rate], strict=True)]
            for rate, speedup in zip(_SPEEDS[:2], _SPEEDS[2:], strict=True)
        }
    record: Record = {}
    for name, found in values.items():
        spread = Spread.of(found)
        record |= {name: spread.median, f"{name}_spread": [spread.low, spread.high]}
    return record | {
        "prompts": len(cell.texts),
        "tokens": cell.tokens,
        "prompts_differing": _differing(cell, plain),
        "prefill_seconds": sum(run.prefill for run in cell.runs[-1]),
    }


def _differing(cell: Cell, plain: Cell) -> int | None:
    """Texts that are not those of plain decoding; None where there are none of those."""
    if not plain.measured:
        return None
    return sum(ours != theirs for ours, theirs in zip(cell.texts, plain.texts, strict=True))


def _rates(cell: Cell) -> dict[str, list[float]]:
    """Tokens a second of each repetition."""
    seconds = cell.all_seconds(), cell.decode_seconds()
    return {
        name: [cell.tokens / each for each in every]
        for name, every in zip(_SPEEDS[:2], seconds, strict=True)
    }


def _counts(cell: Cell) -> Record:
    return {
        "tokens_per_step": cell.tokens / max(int(cell.count("target_steps")), 1),
        "input_padding": cell.share("padded", "rows"),
        "cache_padding": cell.share("empty", "cached"),
        "drafted_by_position": cell.count("drafted").tolist(),
        "accepted_by_position": cell.count("accepted").tolist(),
    }
