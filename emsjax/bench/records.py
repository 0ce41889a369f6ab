"""The records that `results.json` holds, made from cells."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emsjax.bench.cells import Cell, Spread
from emsjax.bench.contenders import PLAIN
from emsjax.bench.peer import PEERS
from emsjax.errors import UserError, foreign
from emsjax.host.device import device_name
from emsjax.host.provenance import commit_of, version_of
from emsjax.version import __version__

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "transformers", "torch", "libtpu")
# Folders of the repository in which a change can change a figure.
CODE = ("emsjax", "models", "pallas_kernels")
Record = dict[str, Any]


def records_of(cells: Sequence[Cell], facts: Mapping[str, Any]) -> list[Record]:
    """Returns the records of one batch size.

    Args:
      cells: all cells of the batch size, those of plain decoding included.
      facts: fields that describe the run, added to every record.
    """
    plain = {cell.dataset: cell for cell in cells if cell.spec.method == PLAIN}
    records = [
        _record(cell, plain[cell.dataset]) | {"over": _over(cell, cells)} | dict(facts)
        for cell in cells
    ]
    for record in records:
        if record["method"] in PEERS and record["simulated"]:
            # The peer has other random weights and follows no script, so its texts always differ.
            record["prompts_differing"] = None
    return records


def read_records(file: Path) -> list[Record]:
    """Reads the records of an earlier run.

    Raises:
      UserError: the file cannot be read or is damaged.
    """
    with foreign(f"{file} holds no results to append to", "name another --output"):
        records = json.loads(file.read_text(encoding="utf-8"))
        if not all(record.keys() >= set(_FIGURES) for record in records):
            raise ValueError("records lack figures")
        return records


def run_facts(devices: int = 1) -> Record:
    """Fields that the records of all runs with this code on so many devices here share."""
    versions = {name: version_of(name) for name in PACKAGES}
    return {
        "commit": commit_of(__file__, CODE),
        "device": device_name(devices),
        "versions": {"emsjax": __version__, **{n: v for n, v in versions.items() if v}},
    }


# Records that differ in one of these fields cannot be compared in one table.
ALIKE = (
    *("model", "dtype", "quantize", "kv_dtype", "simulated", "device", "versions", "texts"),
    *("draft_model", "draft_quantize", "jobs"),
)


def check_alike(earlier: Sequence[Record], facts: Mapping[str, Any]) -> None:
    """Checks that records with these facts may be added to earlier ones.

    Raises:
      UserError: the earlier ones differ in a field of `ALIKE`.
    """
    for field in ALIKE:
        if found := [r for r in earlier if r.get(field) != facts[field]]:
            raise UserError(
                f"the earlier results differ in {field}: there it is {found[0].get(field)}, "
                f"here {facts[field]}; name another --output"
            )


def merge(earlier: Sequence[Record], newer: Sequence[Record]) -> list[Record]:
    """Returns all records by batch size, with newer ones replacing earlier ones.

    A batch size and dataset is replaced as a whole: speedups are over plain decoding in the same
    run, so a record must not outlive it. If plain decoding failed this time and did not before,
    the earlier figures stay.
    """
    failed = {_group(r) for r in newer if r["method"] == PLAIN and r["error"]}
    better = failed & {_group(r) for r in earlier if r["method"] == PLAIN and not r["error"]}
    newer = [record for record in newer if _group(record) not in better]
    replaced = {_group(record) for record in newer}
    kept = [record for record in earlier if _group(record) not in replaced]
    return sorted([*kept, *newer], key=lambda record: record["batch_size"])


def _group(record: Record) -> tuple[int, str]:
    return record["batch_size"], record["dataset"]


def _record(cell: Cell, plain: Cell) -> Record:
    """The record of a cell. Every record has the same fields; missing figures are None."""
    record: Record = {
        "method": cell.spec.method,
        "drafter": cell.spec.drafter,
        "planner": cell.spec.planned,
        "batch_size": cell.batch_size,
        "dataset": cell.dataset,
        "error": cell.error,
        **dict.fromkeys((*_FIGURES, *_LATER)),
    }
    if not cell.measured:
        return record
    record |= _speeds(cell, plain) | cell.facts
    if cell.spec.method not in PEERS:
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
# Fields that results of version 0.1.0 lack.
_LATER = ("prefill_seconds_spread",)


def _speeds(cell: Cell, plain: Cell) -> Record:
    """Rates, and their ratios to plain decoding's, computed repetition by repetition."""
    values = _rates(cell)
    if plain.measured:
        theirs = _rates(plain)
        values |= {
            speedup: _ratios(values[rate], theirs[rate])
            for rate, speedup in zip(_SPEEDS[:2], _SPEEDS[2:], strict=True)
        }
    record: Record = {}
    for name, found in (values | {"prefill_seconds": cell.prefill_seconds()}).items():
        spread = Spread.of(found)
        record |= {name: spread.median, f"{name}_spread": [spread.low, spread.high]}
    return record | {
        "prompts": len(cell.texts),
        "tokens": cell.tokens,
        "prompts_differing": _differing(cell, plain),
    }


def _over(cell: Cell, cells: Sequence[Cell]) -> Record:
    """How many times as fast as each peer a contender is, by the peer's name.

    Each entry holds the median, the lowest and the highest ratio of the whole time (`whole`), of
    the time to read the prompts (`reading`) and of the rest (`further`). Empty for peers.
    """
    others = [each for each in cells if each.spec.method in PEERS and each.dataset == cell.dataset]
    if not cell.measured or cell.spec.method in PEERS:
        return {}
    return {peer.spec.label: _faster(cell, peer) for peer in others if peer.measured}


def _faster(ours: Cell, theirs: Cell) -> Record:
    rates, others = _rates(ours), _rates(theirs)
    whole, further = (_ratios(rates[name], others[name]) for name in _SPEEDS[:2])
    reading = _ratios(theirs.prefill_seconds(), ours.prefill_seconds())
    found = {"whole": whole, "reading": reading, "further": further}
    return {name: list(Spread.of(each)) for name, each in found.items()}


def _ratios(left: Sequence[float], right: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(left, right, strict=True)]


def _differing(cell: Cell, plain: Cell) -> int | None:
    """The number of texts that differ from plain decoding's; None if plain decoding failed."""
    if not plain.measured:
        return None
    return sum(ours != theirs for ours, theirs in zip(cell.texts, plain.texts, strict=True))


def _rates(cell: Cell) -> dict[str, list[float]]:
    """Tokens per second of each repetition, with and without prefill."""
    seconds = cell.all_seconds(), cell.decode_seconds()
    return {
        name: [cell.tokens / each for each in every]
        for name, every in zip(_SPEEDS[:2], seconds, strict=True)
    }


def _counts(cell: Cell) -> Record:
    """What the steps did. Of a whole job, padding is unknown."""
    padding = {"input_padding": ("padded", "rows"), "cache_padding": ("empty", "cached")}
    known = cell.runs[-1][0].counts.keys()
    return {
        "tokens_per_step": cell.tokens / max(int(cell.count("target_steps")), 1),
        **{name: cell.share(*of) for name, of in padding.items() if known >= set(of)},
        "drafted_by_position": cell.count("drafted").tolist(),
        "accepted_by_position": cell.count("accepted").tolist(),
    }
