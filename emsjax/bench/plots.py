"""Plots records: speedup next to the paper's, tokens per step, and the time of a step's parts."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emsjax.bench.contenders import PLAIN
from emsjax.bench.paper import SPEEDUP
from emsjax.bench.records import Record
from emsjax.bench.stepped import PARTS
from emsjax.bench.tables import name_of
from emsjax.errors import foreign
from emsjax.host.files import replacing


def draw(records: Sequence[Record], directory: Path) -> list[Path]:
    """Writes the plots of a run, one set for each dataset, and returns their files.

    Raises:
      UserError: they cannot be drawn or written.
    """
    from matplotlib import rc_context

    # A dollar sign in the name of a dataset or a model begins no formula.
    plain = rc_context({"text.parse_math": False})
    with foreign("the plots cannot be drawn", "the results are whole without them"), plain:
        return _draw(records, directory)


def _draw(records: Sequence[Record], directory: Path) -> list[Path]:
    # pyplot is avoided: importing it would change how the caller's own figures are shown.
    from matplotlib.figure import Figure

    files = []
    for dataset in dict.fromkeys(record["dataset"] for record in records):
        some = [r for r in records if r["dataset"] == dataset and not r["error"]]
        for name, plot in (("speedup", _speedup), ("tokens-per-step", _tokens), ("time", _time)):
            figure = Figure(figsize=(6.4, 4.0), layout="constrained")
            axes = figure.subplots()
            if plot(axes, some):
                note = " (simulated acceptance)" if records[0]["simulated"] else ""
                axes.set_title(f"{records[0]['model']}, {dataset}{note}", fontsize=10)
                files.append(directory / f"{name}-{_file_name(dataset)}.png")
                with replacing(files[-1]) as stream:
                    figure.savefig(stream, dpi=120, format="png")
    return files


def _file_name(dataset: str) -> str:
    """A dataset's name with every character that is unsafe in a file name replaced."""
    return re.sub(r"[^\w.-]+", "_", dataset)


def _lines(records: Sequence[Record], field: str) -> dict[str, list[tuple[int, float, Any]]]:
    """Batch size, value and spread of a field, by contender; plain decoding is left out."""
    found: dict[str, list[tuple[int, float, Any]]] = {}
    for record in records:
        if record["method"] != PLAIN and record.get(field) is not None:
            point = record["batch_size"], record[field], record.get(f"{field}_spread")
            found.setdefault(name_of(record), []).append(point)
    return found


def _speedup(axes: Any, records: Sequence[Record]) -> bool:
    jobs = any(record.get("jobs") for record in records)
    lines = _lines(records, "speedup" if jobs else "decode_speedup")
    if not lines:
        return False
    for name, points in lines.items():
        sizes, values, spreads = zip(*points, strict=True)
        (line,) = axes.plot(sizes, values, marker="o", markersize=4, label=name)
        low, high = zip(*spreads, strict=True)
        axes.fill_between(sizes, low, high, alpha=0.15, color=line.get_color())
    measured = {size for points in lines.values() for size, *_ in points}
    for method, paper in () if jobs else SPEEDUP.items():  # The paper's are of batches.
        # The paper's batch sizes go up to 24; only those within the measured ones are drawn.
        found = {n: each for n, each in paper.items() if min(measured) <= n <= max(measured)}
        if not found:
            continue
        style = "--" if method == "ems" else ":"
        axes.plot(found.keys(), found.values(), style, color="grey", linewidth=1)
        end = max(found)
        axes.annotate(f"paper: {method}", (end, found[end]), fontsize=7, color="grey")
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set(xlabel="batch size", ylabel="speedup over plain decoding")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    return True


def _tokens(axes: Any, records: Sequence[Record]) -> bool:
    lines = _lines(records, "tokens_per_step")
    if not lines:
        return False
    for name, points in lines.items():
        axes.plot(*list(zip(*points, strict=True))[:2], marker="o", markersize=4, label=name)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set(xlabel="batch size", ylabel="tokens per target step")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    return True


def _time(axes: Any, records: Sequence[Record]) -> bool:
    """Draws one bar for each contender and batch size, with one colour for each part."""
    timed = [record for record in records if record["parts"]]
    if not timed:
        return False
    labels = [f"{name_of(record)}, {record['batch_size']}" for record in timed]
    left = [0.0] * len(timed)
    for part in PARTS:
        widths = [1000 * record["parts"][part] for record in timed]
        axes.barh(labels, widths, left=left, label=part)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set(xlabel="milliseconds per step")
    axes.tick_params(axis="y", labelsize=7)
    axes.legend(fontsize=8)
    return True
