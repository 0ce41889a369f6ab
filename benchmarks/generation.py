"""Tokens per second of `transformers`, plain decoding and prompt lookup, side by side.

python -m benchmarks.generation --input spec_bench.jsonl --output results.json
"""

import argparse
import itertools
import multiprocessing
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import (
    Spread,
    chat,
    cores,
    describe,
    first_difference,
    machine,
    read_prompts,
    say,
    table,
    write_json,
)
from benchmarks.export import export_hugging_face
from benchmarks.worker import TRANSFORMERS, Case, Run, Tokens, Worker

WARM_UP_TOKENS = 2
# Beyond this a run says nothing: PyTorch's threads wait for one another, and with one core taken
# by other work they were up to twenty times slower, where emsjax lost far less.
MOST_OTHERS_CORES = 0.1


@dataclass
class Measured:
    """A worker and what it has measured; list entries are repetitions.

    Attributes:
      worker: its process.
      prompts: token ids.
      first_seconds: the first warm-up run, compiling included.
      warm_seconds: the same run again.
      prefill: runs of one token a prompt.
      full: runs of all tokens.
      peak_rss: bytes, once closed.
    """

    worker: Worker
    prompts: list[Tokens]
    first_seconds: float
    warm_seconds: float
    prefill: list[Run] = field(default_factory=list)
    full: list[Run] = field(default_factory=list)
    peak_rss: int = 0

    @property
    def name(self) -> str:
        """For progress lines."""
        return f"{self.worker.case.method} at batch {self.worker.case.batch_size}"

    @property
    def others_cores(self) -> float:
        """Processors that other processes took in the worst of the runs."""
        return max(run.others_cores or 0.0 for run in self.prefill + self.full)

    def rates(self) -> list[float]:
        """Tokens/s of each repetition, prefill included."""
        return [_count(run) / run.seconds for run in self.full]

    def decode_rates(self) -> list[float]:
        """Tokens/s of each repetition behind each prompt's first token.

        Empty where a run is no longer than its prefill, which is noise of a tiny run.
        """
        pairs = list(zip(self.full, self.prefill, strict=True))
        if any(full.seconds <= prefill.seconds for full, prefill in pairs):
            return []
        return [
            (_count(full) - _count(prefill)) / (full.seconds - prefill.seconds)
            for full, prefill in pairs
        ]


def _count(run: Run) -> int:
    return sum(map(len, run.tokens))


def main() -> None:
    """Measures, prints a Markdown table and writes JSON."""
    options = _options()
    facts = machine()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        prompts = _prepare(options, scratch)
        cases = [_start(case, prompts, options) for case in _cases(options, scratch)]
        for number in range(options.repeats):
            _repeat(number, cases, options)
        for case in cases:
            case.peak_rss = case.worker.close()
    results = [_result(case) for case in cases]
    comparisons = _comparisons(cases)
    settings = vars(options) | {"input": options.input.name, "output": options.output.name}
    settings["model"] = Path(options.model).name if options.model else "default"
    content = {"benchmark": "generation", "machine": facts, "settings": settings}
    write_json(options.output, content | {"results": results, "comparisons": comparisons})
    print(_report(results, comparisons, facts, options))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flag = argparse.BooleanOptionalAction
    parser.add_argument("--input", type=Path, required=True, help="prompts in Spec-Bench's format")
    parser.add_argument("--category", default="summarization", help="of Spec-Bench, or all")
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument(
        "--prompts-at", type=_size_and_count, action="append", default=[], metavar="B:N"
    )
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--batch-sizes", type=_numbers, default=[1, 8])
    parser.add_argument("--methods", type=_names, default=[TRANSFORMERS, "none", "prompt-lookup"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ignore-eos", action=flag, default=True, help="equal work for all")
    parser.add_argument("--exact", action=flag, default=False, help="emsjax with exact=True")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--torch-threads", type=int, default=cores(), help="all cores if left out")
    parser.add_argument("--model", help="as for LLM; the default model if left out")
    parser.add_argument("--max-model-len", type=int, help="emsjax's; its own default if left out")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/generation.json"))
    options = parser.parse_args()
    if options.repeats < 1 or options.prompts < 1 or options.max_tokens < 2:
        parser.error("--repeats and --prompts must be at least 1, --max-tokens at least 2")
    return options


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _names(text: str) -> list[str]:
    return text.split(",")


def _size_and_count(text: str) -> tuple[int, int]:
    size, count = text.split(":")
    return int(size), int(count)


def _prepare(options: argparse.Namespace, scratch: Path) -> list[Tokens]:
    """Exports the weights, and tokenises once for all methods."""
    say("writing the weights for transformers")
    prompts = read_prompts(options.input, options.category)[: options.prompts]
    texts = [prompt.text for prompt in prompts]
    # In a process of its own: jax and PyTorch in this one would only take memory.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_export, (options.model, scratch, texts))


def _export(model: str | None, scratch: Path, texts: Sequence[str]) -> list[Tokens]:
    from transformers import AutoTokenizer

    export_hugging_face(model, scratch)
    tokenizer = AutoTokenizer.from_pretrained(scratch)
    return [
        list(tokenizer.apply_chat_template(chat(text), add_generation_prompt=True)["input_ids"])
        for text in texts
    ]


def _cases(options: argparse.Namespace, scratch: Path) -> list[Case]:
    cases = []
    for size, method in itertools.product(options.batch_sizes, options.methods):
        compile_cache = scratch / f"compiled-{method}-{size}"
        cases.append(
            Case(
                method=method,
                batch_size=size,
                model=options.model,
                hf_directory=str(scratch),
                dtype=options.dtype,
                ignore_eos=options.ignore_eos,
                exact=options.exact,
                max_model_len=options.max_model_len,
                compile_cache=str(compile_cache),
                torch_threads=options.torch_threads,
            )
        )
    return cases


def _start(case: Case, prompts: list[Tokens], options: argparse.Namespace) -> Measured:
    """A worker, warm: loaded, compiled, and run on one batch."""
    say(f"starting {case.method} at batch {case.batch_size}")
    prompts = prompts[: dict(options.prompts_at).get(case.batch_size)]
    worker = Worker(case)
    batch = prompts[: case.batch_size]
    first, warm = (worker.generate(batch, WARM_UP_TOKENS).seconds for _ in range(2))
    loaded = worker.ready["load_seconds"]
    say(f"  loaded in {loaded:.1f} s, first run {first:.1f} s, then {warm:.1f} s")
    return Measured(worker, prompts, first, warm)


def _repeat(number: int, cases: list[Measured], options: argparse.Namespace) -> None:
    """One repetition of every case, starting with another one each time."""
    start = number % len(cases)
    for case in cases[start:] + cases[:start]:
        case.prefill.append(case.worker.generate(case.prompts, 1))
        case.full.append(case.worker.generate(case.prompts, options.max_tokens))
        rate = case.rates()[-1]
        say(f"repetition {number + 1} of {options.repeats}: {case.name}: {rate:.1f} tokens/s")
        if case.others_cores > MOST_OTHERS_CORES:
            say(f"warning: other processes took {case.others_cores:.2f} cores: not a valid figure")


def _result(case: Measured) -> dict[str, Any]:
    """One case's figures."""
    run = case.full[-1]
    decode = case.decode_rates()
    return {
        "method": case.worker.case.method,
        "batch_size": case.worker.case.batch_size,
        "device": case.worker.ready["device"],
        "prompts": len(case.prompts),
        "prompt_tokens": sum(map(len, case.prompts)),
        "tokens": _count(run),
        "tokens_per_s": Spread.of(case.rates()).record(),
        "decode_tokens_per_s": Spread.of(decode).record() if decode else None,
        "seconds": [run.seconds for run in case.full],
        "others_cores": [run.others_cores for run in case.full],
        "others_cores_worst": case.others_cores,
        "prefill_seconds": [run.seconds for run in case.prefill],
        "tokens_per_target_step": _count(run) / run.target_steps,
        "drafted_by_position": run.drafted,
        "accepted_by_position": run.accepted,
        "same_tokens_each_repetition": all(run.tokens == other.tokens for other in case.full),
        "load_seconds": case.worker.ready["load_seconds"],
        "compile_seconds": max(case.first_seconds - case.warm_seconds, 0.0),
        "loaded_rss_bytes": case.worker.ready["loaded_rss"],
        "peak_rss_bytes": case.peak_rss,
    }


def _comparisons(cases: list[Measured]) -> list[dict[str, Any]]:
    """Every two methods at the same batch size: speed ratios of each repetition, and tokens."""
    return [
        {
            "batch_size": left.worker.case.batch_size,
            "method": right.worker.case.method,
            "against": left.worker.case.method,
            "speedup": _ratio(right.rates(), left.rates()),
            "decode_speedup": _ratio(right.decode_rates(), left.decode_rates()),
            **_agreement(left.full[-1].tokens, right.full[-1].tokens),
        }
        for left, right in itertools.combinations(cases, 2)
        if left.worker.case.batch_size == right.worker.case.batch_size
    ]


def _ratio(ours: list[float], theirs: list[float]) -> dict[str, float] | None:
    """Ours over theirs, repetition by repetition: a slow spell of the machine hits both."""
    if not ours or not theirs:
        return None
    return Spread.of(a / b for a, b in zip(ours, theirs, strict=True)).record()


def _agreement(left: list[Tokens], right: list[Tokens]) -> dict[str, Any]:
    found = [first_difference(a, b) for a, b in zip(left, right, strict=True)]
    differing = {str(number): at for number, at in enumerate(found) if at is not None}
    return {
        "prompts": len(found),
        "prompts_differing": len(differing),
        "first_difference_by_prompt": differing,
    }


def _report(
    results: list[dict[str, Any]],
    comparisons: list[dict[str, Any]],
    facts: dict[str, Any],
    options: argparse.Namespace,
) -> str:
    eos = "past the end of text" if options.ignore_eos else "stopping at the end of text"
    title = (
        f"{options.category} prompts, {options.max_tokens} new tokens ({eos}), {options.dtype}, "
        f"{'exact, ' if options.exact else ''}median (min-max) of {options.repeats}:"
    )
    parts = [
        title,
        table(_RESULT_HEADER, map(_result_row, results)),
        table(_COMPARISON_HEADER, map(_comparison_row, comparisons)),
        *filter(None, [*map(_acceptance, results), _disturbed(results)]),
        describe(facts),
    ]
    return "\n\n".join(parts)


_RESULT_HEADER = (
    "method",
    "batch",
    "prompts",
    "tokens/s",
    "tokens/s without prefill",
    "tokens a step",
    "load s",
    "compile s",
    "peak MiB",
)
_COMPARISON_HEADER = (
    "method",
    "against",
    "batch",
    "speedup",
    "without prefill",
    "prompts that differ",
    "first at",
)


def _result_row(result: dict[str, Any]) -> list[str]:
    compiles = result["method"] != TRANSFORMERS
    return [
        result["method"],
        str(result["batch_size"]),
        str(result["prompts"]),
        _spread(result["tokens_per_s"], 1),
        _spread(result["decode_tokens_per_s"], 1),
        f"{result['tokens_per_target_step']:.2f}",
        f"{result['load_seconds']:.1f}",
        f"{result['compile_seconds']:.1f}" if compiles else "-",
        f"{result['peak_rss_bytes'] / 2**20:.0f}",
    ]


def _comparison_row(comparison: dict[str, Any]) -> list[str]:
    positions = comparison["first_difference_by_prompt"].values()
    return [
        comparison["method"],
        comparison["against"],
        str(comparison["batch_size"]),
        _spread(comparison["speedup"], 2),
        _spread(comparison["decode_speedup"], 2),
        f"{comparison['prompts_differing']} of {comparison['prompts']}",
        str(min(positions)) if positions else "-",
    ]


def _spread(record: dict[str, float] | None, digits: int) -> str:
    return Spread(*record.values()).show(digits) if record else "-"


def _acceptance(result: dict[str, Any]) -> str:
    """The accepted share of the drafts by position; empty where nothing was drafted."""
    if not any(result["drafted_by_position"]):
        return ""
    pairs = zip(result["accepted_by_position"], result["drafted_by_position"], strict=True)
    shares = " ".join(
        f"{accepted / drafted:.0%}" if drafted else "-" for accepted, drafted in pairs
    )
    name = f"{result['method']}, batch {result['batch_size']}"
    return f"Accepted of what was drafted at positions 1, 2, … ({name}): {shares}"


def _disturbed(results: list[dict[str, Any]]) -> str:
    """Says that the figures are not valid, if they are not; else empty."""
    worst = max(result["others_cores_worst"] for result in results)
    if worst <= MOST_OTHERS_CORES:
        return ""
    return (
        f"**Not valid**: other processes took up to {worst:.2f} cores during a run, which slows "
        "PyTorch far more than emsjax. Measure again on a quiet machine."
    )


if __name__ == "__main__":
    main()
