"""The time that sampling adds to a step: temperature, filters, penalties and log-probabilities.

python -m benchmarks.sampling --output results.json
"""

import argparse
import statistics
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax

from benchmarks.common import describe, machine, say, write_json
from emsjax.cli.markdown import table
from emsjax.llm import LLM
from emsjax.requests.samples import make_samples
from emsjax.requests.sampling_params import SamplingParams

PROMPT = "Write down everything that you know about {}, in full sentences and in good order."
TOPICS = ("rivers", "bread", "glass", "moths", "sails", "copper", "chess", "salt")
GREEDY = "greedy"
STEPS = 8
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
    tokens = STEPS * (options.repeats + 2)
    llm = LLM(
        options.model,
        drafter="none",
        max_batch_size=options.batch_size,
        max_model_len=64 + tokens,
    )
    base = SamplingParams(max_tokens=tokens, temperature=0.8, seed=0, ignore_eos=True)
    kinds = {name: replace(base, **given) for name, given in KINDS.items()}
    batches = {name: _Batch(llm, params) for name, params in kinds.items()}
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(options.repeats):
        for name, batch in _rotated(batches, number):
            found[name].append(batch.step_seconds())
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
    parser.add_argument("--repeats", type=int, default=41)
    parser.add_argument("--model", help="as for LLM; default: the default model")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/sampling.json"))
    return parser.parse_args()


def _rotated(batches: dict[str, "_Batch"], by: int) -> list[tuple[str, "_Batch"]]:
    """All batches, in an order that starts with another one for each value of `by`."""
    items = list(batches.items())
    first = by % len(items)
    return items[first:] + items[:first]


class _Batch:
    """A full batch of one kind in the middle of decoding, with its own cache."""

    def __init__(self, llm: LLM, params: SamplingParams):
        self._engine = llm.engine
        self._state = self._engine.empty()
        for slot in range(self._engine.num_slots):
            prompt = PROMPT.format(TOPICS[slot % len(TOPICS)])
            (sample,) = make_samples(llm.request(prompt, params, str(slot)), None, streamed=False)
            self._state = self._engine.admit(self._state, slot, sample.job(), None)
        for _ in range(2):  # Compiles, and reads the prompts.
            self.step_seconds()

    def step_seconds(self) -> float:
        """Mean seconds of the next few steps, each of which emits one token per slot."""
        started = time.perf_counter()
        self._state = self._engine.advance(self._state, STEPS, others_wait=False)
        jax.block_until_ready(self._state.lens)
        return (time.perf_counter() - started) / STEPS


def _report(
    found: dict[str, list[float]], facts: dict[str, Any], options: argparse.Namespace
) -> str:
    rows = []
    for name, seconds in found.items():
        pairs = zip(seconds, found[GREEDY], strict=True)
        added = [100 * (one / greedy - 1) for one, greedy in pairs]
        quarters = statistics.quantiles(added, n=4)
        spread = f"{quarters[1]:.1f} ({quarters[0]:.1f} to {quarters[2]:.1f})"
        rows.append((name, f"{1000 * statistics.median(seconds):.1f}", spread))
    header = (f"batch {options.batch_size}, plain decoding", "ms per step", "added, %")
    title = f"Medians (and quartiles) of {options.repeats} repetitions; temperature 0.8:"
    return "\n\n".join([title, table(header, rows), describe(facts)])


if __name__ == "__main__":
    main()
