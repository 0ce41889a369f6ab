"""Records as Markdown."""

from collections.abc import Iterable, Sequence

from emsjax.bench.contenders import PLAIN
from emsjax.bench.paper import SPEEDUP
from emsjax.bench.records import Record

OTHER_TEXTS = "†"
# Processors; a system that is left alone takes a few hundredths of one.
BUSY = 0.1


def report(records: Sequence[Record]) -> str:
    """All tables, a heading each, and what was measured on what.

    Args:
      records: of one model on one device, perhaps of several runs.
    """
    first = records[0]
    lines = [
        f"# {first['model']}, {first['dtype']}",
        f"On {first['device']}; {'; or '.join(dict.fromkeys(map(_versions, records)))}.",
        *_commits(records),
        *_busy(records),
        *_attention(records),
        *([f"**Simulated**: {first['simulated']}."] if first["simulated"] else []),
        "```sh\n" + "\n".join(_different(records, "command")) + "\n```",
    ]
    for dataset in _different(records, "dataset"):
        some = [record for record in records if record["dataset"] == dataset]
        lines += [f"## {dataset}", _speedups(some), _details(some)]
        lines += [f"- {error}" for error in _errors(some)]
    return "\n\n".join(lines) + "\n"


def _busy(records: Sequence[Record]) -> list[str]:
    """Records of version 0.1.0 or before do not tell."""
    others = max(record.get("other_cpus") or 0.0 for record in records)
    if others < BUSY:
        return []
    return [f"**Other work ran beside it**: it kept {others:.1f} processors busy."]


def _commits(records: Sequence[Record]) -> list[str]:
    """Of which code the figures are."""
    sizes: dict[str, dict[str, None]] = {}
    for record in records:
        commit = record.get("commit") or "not known"
        sizes.setdefault(commit, {})[str(record["batch_size"])] = None
    each = "; ".join(f"{commit} (batch {', '.join(found)})" for commit, found in sizes.items())
    return [f"Commit: {each}."]


def _versions(record: Record) -> str:
    return ", ".join(f"{name} {version}" for name, version in record["versions"].items())


def _attention(records: Sequence[Record]) -> list[str]:
    """Which methods use which kernel, where that is not the same for all."""
    used: dict[str, dict[str, None]] = {}
    for record in records:
        if record["attention"] is not None:
            used.setdefault(record["attention"], {})[record["method"]] = None
    if len(used) < 2:
        return []
    each = "; ".join(f"{name} in {', '.join(methods)}" for name, methods in used.items())
    return [f"**Not all attend with the same kernel**, which is no merit of a method: {each}."]


def _speedups(records: Sequence[Record]) -> str:
    """A line a contender, a column a batch size; the paper's figures below."""
    sizes = sorted(_different(records, "batch_size"))
    cells = {(name_of(r), r["batch_size"]): r for r in records}
    rows = [
        [name, *(_speedup(cells.get((name, size))) for size in sizes)]
        for name in dict.fromkeys(map(name_of, records))
    ]
    rows += [
        [f"paper: {method}", *(_figure(found.get(size)) for size in sizes)]
        for method, found in SPEEDUP.items()
    ]
    header = ["speedup without reading prompts (with)", *map(str, sizes)]
    note = f"\n\n{OTHER_TEXTS} not all texts are those of plain decoding, see below."
    table = markdown(header, rows)
    return table + note if OTHER_TEXTS in table else table


def _speedup(record: Record | None) -> str:
    if record is None or record["error"]:
        return "-" if record is None else "failed"
    if record["method"] == PLAIN:
        return f"{record['decode_tokens_per_second']:.1f} tok/s"
    other = OTHER_TEXTS if record["prompts_differing"] else ""
    return f"{_figure(record['decode_speedup'])} ({_figure(record['speedup'])}){other}"


def _details(records: Sequence[Record]) -> str:
    header = [
        "batch",
        "",
        "tokens/s",
        "tokens a step",
        "input padding",
        "cache padding",
        "unused rows",
        "of the limit",
        "program, MB",
        "other texts",
    ]
    rows = [[str(r["batch_size"]), name_of(r), *_row(r)] for r in records if not r["error"]]
    return markdown(header, rows)


def _row(r: Record) -> list[str]:
    low, high = r["tokens_per_second_spread"]
    memory = r["peak_memory_bytes"]
    return [
        f"{r['tokens_per_second']:.1f} ({low:.1f}-{high:.1f})",
        _figure(r["tokens_per_step"]),
        *map(_share, (r["input_padding"], r["cache_padding"], r["unused_rows"], r["limit_share"])),
        "-" if memory is None else f"{memory / 1e6:.0f}",
        "-" if r["prompts_differing"] is None else f"{r['prompts_differing']} of {r['prompts']}",
    ]


def name_of(record: Record) -> str:
    """A contender's name for people."""
    drafter = record["drafter"]
    return record["method"] if drafter == PLAIN else f"{record['method']}, {drafter}"


def _errors(records: Iterable[Record]) -> list[str]:
    return [f"batch {r['batch_size']}, {name_of(r)}: {r['error']}" for r in records if r["error"]]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _different(records: Iterable[Record], field: str) -> list:
    return list(dict.fromkeys(record[field] for record in records))


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the first column is text, the others are figures."""
    rule = ["---", *["--:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))
