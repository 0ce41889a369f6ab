"""What sampling adds to a step: temperature, filters, penalties, log-probabilities, side by side.

python -m benchmarks.sampling --output results.json
"""

import argparse
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.common import Spread, describe, machine, say, table, write_json
from emsjax.llm import LLM
from emsjax.sampling_params import SamplingParams

PROMPT = "Write down everything that you know about {}, in full sentences and in good order."
TOPICS = ("rivers", "bread", "glass", "moths", "sails", "copper", "chess", "salt")
GREEDY = "greedy"
KINDS: dict[str, dict[str, Any]] = {
    GREEDY: {"temperature": 0.0},
    "temperature": {},
    "top-p 0.95": {"top_p": 0.95},
    "top-k 50": {"top_k": 50},
    "min-p 0.05": {"min_p": 0.05},
    "top-k 50, top-p 0.95, min-p 0.05": {"top_k": 50, "top_p": 0.95, "min_p": 0.05},
    "temperature, penalties": {"repetition_penalty": 1.1, "frequency_penalty": 0.1},
    "temperature, 5 log-probabilities": {"logprobs": 5},
}


def main() -> None:
    """Measures, prints a Markdown table and writes JSON."""
    options = _options()
    facts = machine()
    llm = LLM(options.model, drafter=options.drafter, max_batch_size=options.batch_size)
    base = SamplingParams(max_tokens=options.max_tokens, temperature=0.8, seed=0, ignore_eos=True)
    kinds = {name: replace(base, **given) for name, given in KINDS.items()}
    for params in kinds.values():
        _step_seconds(llm, replace(params, max_tokens=8), options.batch_size)
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(options.repeats):
        for name, params in kinds.items():
            found[name].append(_step_seconds(llm, params, options.batch_size))
        say(f"{number + 1} of {options.repeats} repetitions")
    settings = vars(options) | {"output": options.output.name}
    settings["model"] = Path(options.model).name if options.model else "default"
    results = [
        {"kind": name, "params": asdict(kinds[name]), "step_seconds": seconds}
        for name, seconds in found.items()
    ]
    content = {"benchmark": "sampling", "machine": facts, "settings": settings}
    write_json(options.output, content | {"results": results})
    print(_report(found, facts, options))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--drafter", default="none", help="none: one token a step")
    parser.add_argument("--model", help="as for LLM; the default model if left out")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/sampling.json"))
    return parser.parse_args()


def _step_seconds(llm: LLM, params: SamplingParams, batch_size: int) -> float:
    """Of a step behind the first token; drafts make steps of several tokens."""
    prompts = [PROMPT.format(TOPICS[n % len(TOPICS)]) for n in range(batch_size)]
    short, long = (
        _run(llm, prompts, replace(params, max_tokens=n)) for n in (1, params.max_tokens)
    )
    return (long[0] - short[0]) / (long[1] - short[1])


def _run(llm: LLM, prompts: list[str], params: SamplingParams) -> tuple[float, int]:
    """Seconds, and steps of the slot that took most."""
    started = time.perf_counter()
    outputs = llm.generate(prompts, params)
    return time.perf_counter() - started, max(o.metrics.target_steps for o in outputs)


def _report(
    found: dict[str, list[float]], facts: dict[str, Any], options: argparse.Namespace
) -> str:
    rows = []
    for name, seconds in found.items():
        added = [
            100 * (one / greedy - 1) for one, greedy in zip(seconds, found[GREEDY], strict=True)
        ]
        step = Spread.of(1000 * one for one in seconds)
        rows.append((name, step.show(1), Spread.of(added).show(1)))
    header = (f"batch {options.batch_size}, drafter {options.drafter}", "ms a step", "added, %")
    title = f"Median (min-max) of {options.repeats}; temperature 0.8 unless said otherwise:"
    return "\n\n".join([title, table(header, rows), describe(facts)])


if __name__ == "__main__":
    main()
