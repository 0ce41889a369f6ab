"""The command `python -m emsjax.pallas_kernels.tune [--output FILE]`."""

import argparse
import importlib.metadata
import itertools
import json
import sys
from pathlib import Path
from typing import Any

from emsjax.pallas_kernels import tuned
from emsjax.pallas_kernels.backends import target_device, target_platform
from emsjax.pallas_kernels.report.work import MODELS, ragged
from emsjax.pallas_kernels.tune.search import Found, Timer, search, seconds_of_call
from emsjax.pallas_kernels.tune.work import Job, expert_jobs, jobs

PACKAGES = ("jax", "jaxlib", "libtpu", "jax-cuda13-plugin")


def main(arguments: list[str] | None = None, seconds_of: Timer = seconds_of_call) -> None:
    """Times block sizes on this device, and writes the table.

    Args:
      arguments: of the command line.
      seconds_of: the timer; tests have one that needs no device.
    """
    options = _options(arguments)
    if target_platform() == "cpu":
        sys.exit("a CPU's kernels have no block sizes to tune; run this on a TPU or GPU")
    entries = json.loads(options.output.read_text()) if options.output.exists() else []
    for job in _jobs(options):
        for found in search(job.call, job.arguments(), seconds_of):
            print(_line(job, found), file=sys.stderr, flush=True)
            entries = _put(entries, found)
            # After each, so that an interrupt keeps what was measured.
            options.output.write_text(
                json.dumps(entries, indent=1, allow_nan=False) + "\n", encoding="utf-8"
            )


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m emsjax.pallas_kernels.tune",
        description="Time the kernels with several block sizes on this device, and keep those that "
        "are faster than the heuristics' in a table, which the kernels look up.",
    )
    parser.add_argument("--models", metavar="A,B", default="smollm2-135m,llama-3-8b")
    parser.add_argument("--batch", type=int, default=8, help="number of slots")
    parser.add_argument("--rows", type=int, default=8, help="most rows of a slot")
    parser.add_argument("--context", type=int, default=2048, help="most tokens of a slot")
    parser.add_argument(
        "--output", type=Path, default=tuned.FILE, help="the table; default: the kernels' own"
    )
    options = parser.parse_args(arguments)
    if min(options.batch, options.rows) < 1 or options.context < 2 * options.rows:
        parser.error("--batch, --rows and --context must be positive, --context twice --rows")
    options.models = options.models.split(",")
    if unknown := [model for model in options.models if model not in MODELS]:
        parser.error(f"--models: {unknown[0]!r} is unknown; choose from {', '.join(MODELS)}")
    return options


def _jobs(options: argparse.Namespace) -> list[Job]:
    sizes = options.batch, options.rows, options.context
    works = {model: ragged(MODELS[model], *sizes) for model in options.models}
    of_models = itertools.chain.from_iterable(jobs(*each) for each in works.items())
    return [*of_models, *expert_jobs(works[options.models[0]])]


def _put(entries: list[dict[str, Any]], found: Found) -> list[dict[str, Any]]:
    """Returns the table's entries with the outcome in the place of an older one."""
    kernel, sizes, blocks = found.lookup
    record = {"device": target_device(), "kernel": kernel, "sizes": sizes._asdict()}
    key = tuned.key_of(*record.values())
    others = [
        each
        for each in entries
        if tuned.key_of(each["device"], each["kernel"], each["sizes"]) != key
    ]
    if not found.blocks:
        return others
    figures = {"seconds": found.seconds, "heuristic_seconds": found.heuristic_seconds}
    usual = {name: getattr(blocks, name) for name in found.blocks}
    record |= {"blocks": found.blocks, "heuristic": usual, **figures, "versions": _versions()}
    return [*others, record]


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _line(job: Job, found: Found) -> str:
    chosen = ", ".join(f"{name} {size}" for name, size in found.blocks.items())
    microseconds = f"{found.heuristic_seconds * 1e6:.1f} to {found.seconds * 1e6:.1f} µs"
    failed = f"; {found.failed} candidates failed" if found.failed else ""
    outcome = f"{chosen}: {microseconds}" if found.blocks else f"as it is: {microseconds}"
    return f"{job.name}: {found.lookup.kernel}: {outcome}{failed}"


if __name__ == "__main__":
    main()
