"""Time from the command to its first token, with an empty and with a filled compile cache.

python -m benchmarks.first_token --output results.json

The command is `python -m emsjax.generate` in a new process, timed from outside. Another new process
does the same through the Python interface and times each phase.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.common import Spread, describe, machine, peak_rss, say, write_json
from emsjax.cli.markdown import table
from emsjax.host.json_text import to_json

PROMPT = "Why is the sky blue?"
ROOT = Path(__file__).resolve().parent.parent
PHASES = {
    "start": "Python starts",
    "import": "import emsjax, jax, flax",
    "load": "load weights and tokenizer",
    "first": "first token: compile (or read from the cache) and run",
    "again": "first token again: run only",
}


def main() -> None:
    """Measures, prints Markdown tables and writes JSON."""
    options = _options()
    if options.phases:
        print(to_json(_phases(options)))
        return
    facts = machine()
    commands: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    phases: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    for number in range(options.repeats):
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
            for kind in ("cold", "warm"):  # The cold run fills the cache that the warm run finds.
                commands[kind].append(_time_command(options, one))
                phases[kind].append(_time_phases(options, other))
                waited = commands[kind][-1]["first_token_s"]
                say(f"{number + 1} of {options.repeats}: {kind}: first token after {waited:.1f} s")
    settings = vars(options) | {"output": options.output.name, "prompt": PROMPT}
    settings["model"] = Path(options.model).name if options.model else "default"
    content = {"benchmark": "first_token", "machine": facts, "settings": settings}
    write_json(options.output, content | {"commands": commands, "phases": phases})
    print(_report(commands, phases, facts, options.repeats))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", help="as for emsjax.generate; default: the default model")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--batch-size", type=int, default=8, help="as for emsjax.generate")
    parser.add_argument("--drafter", default="prompt-lookup")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/first_token.json"))
    parser.add_argument("--phases", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _flags(options: argparse.Namespace) -> list[str]:
    flags = ["--dtype", options.dtype, "--batch-size", str(options.batch_size)]
    flags += ["--drafter", options.drafter]
    return flags + (["--model", options.model] if options.model else [])


def _environment(cache: str) -> dict[str, str]:
    return {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache, "BENCHMARK_T0": repr(time.time())}


def _time_command(options: argparse.Namespace, cache: str) -> dict[str, float]:
    """Seconds until the command's first output, and until it ends."""
    command = [sys.executable, "-m", "emsjax.generate", *_flags(options)]
    command += ["--prompt", PROMPT, "--max-tokens", "1"]
    started = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, env=_environment(cache)
    ) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        first = time.perf_counter() - started
        _, errors = process.communicate()
    if process.returncode != 0:
        raise SystemExit(errors.decode())
    return {"first_token_s": first, "end_s": time.perf_counter() - started}


def _time_phases(options: argparse.Namespace, cache: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.first_token", "--phases", *_flags(options)]
    done = subprocess.run(
        command, capture_output=True, check=False, text=True, cwd=ROOT, env=_environment(cache)
    )
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _phases(options: argparse.Namespace) -> dict[str, float]:
    """Does what the command of `_time_command` does, and times it from inside.

    Returns:
      Seconds of each phase and of compiling, and peak memory in bytes.
    """
    times = [float(os.environ["BENCHMARK_T0"]), time.time()]
    from emsjax.llm import LLM
    from emsjax.requests.sampling_params import SamplingParams

    compiling = _listen()
    times.append(time.time())
    llm = LLM(
        options.model,
        drafter=options.drafter,
        dtype=options.dtype,
        max_batch_size=options.batch_size,
    )
    times.append(time.time())
    for _ in ("first", "again"):
        llm.generate(PROMPT, SamplingParams(max_tokens=1))
        times.append(time.time())
    seconds = [after - before for before, after in pairwise(times)]
    return dict(zip(PHASES, seconds, strict=True)) | compiling | {"peak_rss_bytes": peak_rss()}


def _listen() -> dict[str, float]:
    """Sums of the compile times that jax reports, in seconds, updated at each event.

    Tracing is left out: its events nest, so a sum would count much of it twice.
    """
    from jax import monitoring

    names = {
        "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower",
        "/jax/core/compile/backend_compile_duration": "compile",
        "/jax/compilation_cache/cache_retrieval_time_sec": "cache_read",
    }
    sums = dict.fromkeys(names.values(), 0.0)

    def add(event: str, seconds: float, **_: Any) -> None:
        if event in names:
            sums[names[event]] += seconds

    monitoring.register_event_duration_secs_listener(add)
    return sums


def _report(
    commands: dict[str, list[dict[str, float]]],
    phases: dict[str, list[dict[str, float]]],
    facts: dict[str, Any],
    repeats: int,
) -> str:
    def row(text: str, measured: dict[str, list[dict[str, float]]], key: str) -> list[str]:
        return [text, *(Spread.of(run[key] for run in measured[kind]).show(2) for kind in measured)]

    header = ("seconds", "compile cache empty", "compile cache filled")
    rows = [
        row("**command to first token**", commands, "first_token_s"),
        row("command to its exit", commands, "end_s"),
        *(row(text, phases, key) for key, text in PHASES.items()),
        row("of these: lowering", phases, "lower"),
        row("of these: XLA, or reading its result from the cache", phases, "compile"),
    ]
    title = f"Median (min-max) of {repeats} runs; the phases were timed in separate processes:"
    peak = Spread.of(run["peak_rss_bytes"] / 2**20 for run in phases["cold"]).show(0)
    memory = f"Peak memory of the process with an empty compile cache: {peak} MiB."
    return "\n\n".join([title, table(header, rows), memory, describe(facts)])


if __name__ == "__main__":
    main()
