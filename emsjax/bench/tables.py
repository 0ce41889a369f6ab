"""Writes records as a Markdown report."""

from collections.abc import Callable, Iterable, Sequence

from emsjax.bench.contenders import PLAIN, Spec
from emsjax.bench.paper import SPEEDUP
from emsjax.bench.records import Record
from emsjax.cli.markdown import table

OTHER_TEXTS = "†"
# Processors kept busy by other processes. A quiet system keeps a few hundredths of one busy.
BUSY = 0.1


def report(records: Sequence[Record]) -> str:
    """Writes the report: the model, device and versions, then the tables of each dataset.

    Args:
      records: of one model on one device, from one or more runs.
    """
    first = records[0]
    lines = [
        f"# {first['model']}, {first['dtype']}{_quantised(first)}",
        f"On {first['device']}; {_versions(first)}.",
        *_commits(records),
        *_busy(records),
        *_attention(records),
        *([f"**Simulated**: {first['simulated']}."] if first["simulated"] else []),
        "```sh\n" + "\n".join(_distinct(records, "command")) + "\n```",
    ]
    for dataset in _distinct(records, "dataset"):
        some = [record for record in records if record["dataset"] == dataset]
        figures = [_jobs(some)] if first.get("jobs") else [_speedups(some), _details(some)]
        lines += [f"## {dataset}", *figures, *_over(some)]
        lines += [f"- {error}" for error in _errors(some)]
    return "\n\n".join(lines) + "\n"


def _busy(records: Sequence[Record]) -> list[str]:
    """A warning if other processes were busy. Records of version 0.1.0 lack the figure."""
    others = max(record.get("other_cpus") or 0.0 for record in records)
    if others < BUSY:
        return []
    return [f"**Other work ran at the same time**: it kept {others:.1f} processors busy."]


def _commits(records: Sequence[Record]) -> list[str]:
    """The commits that were measured, and the batch sizes of each."""
    sizes: dict[str, dict[str, None]] = {}
    for record in records:
        commit = record.get("commit") or "unknown"
        sizes.setdefault(commit, {})[str(record["batch_size"])] = None
    each = "; ".join(f"{commit} (batch {', '.join(found)})" for commit, found in sizes.items())
    return [f"Commit: {each}."]


def _quantised(record: Record) -> str:
    """The parts that are in int8. Records of version 0.1.0 lack the fields."""
    parts = {
        "weights": record.get("quantize"),
        "cache": record.get("kv_dtype"),
        "draft model": record.get("draft_quantize"),
    }
    return "".join(f", {dtype} {part}" for part, dtype in parts.items() if dtype)


def _versions(record: Record) -> str:
    return ", ".join(f"{name} {version}" for name, version in record["versions"].items())


def _attention(records: Sequence[Record]) -> list[str]:
    """A warning if the methods did not all attend with the same kernel."""
    used: dict[str, dict[str, None]] = {}
    for record in records:
        if record["attention"] is not None:
            used.setdefault(record["attention"], {})[record["method"]] = None
    if len(used) < 2:
        return []
    each = "; ".join(f"{name} in {', '.join(methods)}" for name, methods in used.items())
    return [f"**Attention kernels differ**, which is not a merit of a method: {each}."]


def _speedups(records: Sequence[Record]) -> str:
    """A line for each contender, a column for each batch size, and the paper's figures below."""
    sizes = sorted(_distinct(records, "batch_size"))
    cells = {(name_of(r), r["batch_size"]): r for r in records}
    rows = [
        [name, *(_speedup(cells.get((name, size))) for size in sizes)]
        for name in dict.fromkeys(map(name_of, records))
    ]
    rows += [
        [f"paper: {method}", *(_figure(found.get(size)) for size in sizes)]
        for method, found in SPEEDUP.items()
    ]
    speedups = table(["speedup without prefill (with)", *map(str, sizes)], rows)
    note = f"\n\n{OTHER_TEXTS} some texts differ from plain decoding's, see below."
    return speedups + note if OTHER_TEXTS in speedups else speedups


def _speedup(record: Record | None) -> str:
    if record is None or record["error"]:
        return "-" if record is None else "failed"
    if record["method"] == PLAIN:
        return f"{record['decode_tokens_per_second']:.1f} tok/s"
    other = OTHER_TEXTS if record["prompts_differing"] else ""
    return f"{_figure(record['decode_speedup'])} ({_figure(record['speedup'])}){other}"


def _details(records: Sequence[Record]) -> str:
    header = [
        "tokens/s",
        "tokens a step",
        "input padding",
        "cache padding",
        "unused rows",
        "of the limit",
        "program, MB",
        "other texts",
    ]
    return _lines(header, records, _row)


def _lines(
    header: list[str], records: Sequence[Record], cells: Callable[[Record], list[str]]
) -> str:
    """A table with a line for each record without an error, by batch size and contender."""
    rows = [[str(r["batch_size"]), name_of(r), *cells(r)] for r in records if not r["error"]]
    return table(["batch", "", *header], rows)


def _row(r: Record) -> list[str]:
    low, high = r["tokens_per_second_spread"]
    memory = r["peak_memory_bytes"]
    return [
        f"{r['tokens_per_second']:.1f} ({low:.1f}-{high:.1f})",
        _figure(r["tokens_per_step"]),
        *map(_share, (r["input_padding"], r["cache_padding"], r["unused_rows"], r["limit_share"])),
        "-" if memory is None else f"{memory / 1e6:.0f}",
        _other_texts(r),
    ]


def _other_texts(r: Record) -> str:
    return "-" if r["prompts_differing"] is None else f"{r['prompts_differing']} of {r['prompts']}"


def _jobs(records: Sequence[Record]) -> str:
    """A line for each contender and batch size of whole jobs."""
    header = [
        "prompts",
        "tokens/s of the whole job",
        "speedup",
        "one new token each, s",
        "further tokens, s",
        "tokens a step",
        "other texts",
    ]
    return _lines(header, records, _job)


def _job(r: Record) -> list[str]:
    low, high = r["tokens_per_second_spread"]
    further = r["tokens"] / r["decode_tokens_per_second"]
    return [
        str(r["prompts"]),
        f"{r['tokens_per_second']:.1f} ({low:.1f}-{high:.1f})",
        _figure(r["speedup"]),
        _figure(r["prefill_seconds"]),
        _figure(further),
        _figure(r["tokens_per_step"]),
        _other_texts(r),
    ]


def _over(records: Sequence[Record]) -> list[str]:
    """A table of how many times as fast as other libraries the contenders are, if there are any."""
    parts = ("whole", "reading", "further")
    rows = [
        [str(r["batch_size"]), name_of(r), peer, *(_spread(found[part]) for part in parts)]
        for r in records
        for peer, found in (r.get("over") or {}).items()
    ]
    header = ["batch", "", "times as fast as", "in all", "reading prompts", "further tokens"]
    return [table(header, rows)] if rows else []


def _spread(figures: Sequence[float]) -> str:
    median, low, high = figures
    if low <= 0:  # A difference of two times that is lost in noise.
        return "-"
    return f"{median:.2f} ({low:.2f}-{high:.2f})"


def name_of(record: Record) -> str:
    """A contender's name as reports and plots show it."""
    return Spec(record["method"], record["drafter"]).label


def _errors(records: Iterable[Record]) -> list[str]:
    return [f"batch {r['batch_size']}, {name_of(r)}: {r['error']}" for r in records if r["error"]]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _distinct(records: Iterable[Record], field: str) -> list:
    return list(dict.fromkeys(record[field] for record in records))
