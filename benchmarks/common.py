"""Shared parts of the benchmarks: prompts, the machine, medians, memory and results.

Nothing here imports jax or PyTorch: `first_token` times their import, in a process of its own.
"""

import json
import os
import platform
import statistics
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from emsjax.host.json_text import to_json
from emsjax.host.provenance import commit_of, version_of

PACKAGES = ("jax", "jaxlib", "flax", "torch", "transformers", "numpy")


class Prompt(NamedTuple):
    """One prompt of a Spec-Bench file.

    Attributes:
      key: its `question_id`.
      category: its `category`.
      text: the first turn, before the chat template.
    """

    key: str
    category: str
    text: str


def read_prompts(file: Path, category: str | None = None) -> list[Prompt]:
    """Reads the first turns of a Spec-Bench file, of all categories or of one."""
    prompts = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        record = json.loads(line)
        if category in (None, "all", record["category"]):
            key = str(record.get("question_id", number))
            prompts.append(Prompt(key, record["category"], record["turns"][0]))
    if not prompts:
        raise SystemExit(
            f"{file} has no prompts of category {category or 'all'!r}; "
            "name another category or file"
        )
    return prompts


def spread_evenly(prompts: Sequence[Prompt], count: int) -> list[list[dict[str, str]]]:
    """Selects up to `count` prompts at even distances, each as a chat."""
    chosen = prompts[:: max(len(prompts) // count, 1)][:count]
    return [chat(prompt.text) for prompt in chosen]


def chat(text: str) -> list[dict[str, str]]:
    """A chat of one user message."""
    return [{"role": "user", "content": text}]


def numbers(text: str) -> list[int]:
    """Parses a comma-separated option."""
    return [int(part) for part in text.split(",")]


def cores() -> int:
    """The number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def peak_rss() -> int:
    """The most memory this process has held, in bytes.

    On Linux this is VmHWM, since a child inherits `ru_maxrss` from its parent.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Spread(NamedTuple):
    """Median, minimum and maximum of repeated measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """The spread of one or more values."""
        found = list(values)
        return cls(statistics.median(found), min(found), max(found))

    def show(self, digits: int = 1) -> str:
        """The spread as a table's cell: `12.3 (12.0-12.9)`."""
        low, median, high = (f"{x:.{digits}f}" for x in (self.low, self.median, self.high))
        return f"{median} ({low}-{high})"

    def record(self) -> dict[str, float]:
        """The spread as a JSON object."""
        return {"median": self.median, "min": self.low, "max": self.high}


def machine() -> dict[str, Any]:
    """Processor, system, versions and commit; prints a warning if the machine is busy."""
    load = os.getloadavg()[0]
    if load > 0.5:
        say(f"warning: the machine is busy (load {load:.1f}); figures will be noisy")
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit_of(__file__),
        "cpu": _cpu_name(),
        "cores": cores(),
        "load_at_start": load,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version_of(name) for name in PACKAGES},
    }


def _cpu_name() -> str:
    """The processor's name, and on Linux its vector and matrix extensions."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    lines = dict(
        (part.strip() for part in line.split(":", 1))
        for line in info.read_text().splitlines()
        if ":" in line
    )
    flags = lines.get("flags", "").split()
    widest = [flag for flag in ("avx2", "avx512f", "amx_tile") if flag in flags]
    return " ".join([lines.get("model name", platform.machine()), *widest])


def say(text: str) -> None:
    """Prints a line of progress to standard error."""
    print(text, file=sys.stderr, flush=True)


def describe(facts: dict[str, Any]) -> str:
    """The machine in one line, for below a table."""
    versions = ", ".join(f"{name} {facts[name]}" for name in ("python", *PACKAGES) if facts[name])
    return f"{facts['cpu']}, {facts['cores']} cores; {versions}; commit {facts['commit']}"


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Writes results, and makes their directory if it is missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(to_json(content, indent=1) + "\n", encoding="utf-8")
    say(f"wrote {file}")


def first_difference(left: Sequence[int], right: Sequence[int]) -> int | None:
    """The first position at which two token sequences differ; None if they are equal."""
    for position, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return position
    return None if len(left) == len(right) else min(len(left), len(right))
