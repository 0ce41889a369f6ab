"""Expected speedup on other hardware, from real texts and drafts and estimated step costs.

python -m benchmarks.simulation --input spec_bench.jsonl --output results.json

The default model writes its answers once. Then the real loop, drafter and planner decode them again
with a stand-in for the target, which knows the next token, and each step is charged its estimated
cost on the simulated hardware.
"""

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.common import (
    describe,
    machine,
    numbers,
    read_prompts,
    say,
    spread_evenly,
    write_json,
)
from emsjax.bench.stepped import Step, SteppedEngine
from emsjax.cli.markdown import table
from emsjax.costs.hardware import HARDWARE
from emsjax.costs.roofline import estimated_costs
from emsjax.drafters import NoDrafter, PromptLookup
from emsjax.engine.drafter import Drafter
from emsjax.engine.job import Finished, Job
from emsjax.engine.ladder import make_ladder
from emsjax.engine.packing import PackedBatch
from emsjax.engine.step_costs import StepCosts, without_prompts
from emsjax.host.json_text import to_json
from emsjax.loading.build import shape_of_model
from emsjax.loading.named import named_config

CAPACITY = 2048
# Large, so that few steps read prompts: those are not charged.
PREFILL_CHUNK = 8192
FIXED_LENGTHS = (1, 3, 5, 7)
MODELS = ("opt-6.7b", "llama-3-8b")
DEVICES = ("v5e", "h100")


class Answer(NamedTuple):
    """A prompt and the model's answer, as token ids."""

    prompt: list[int]
    output: list[int]


class Replay(nnx.Module):
    """A stand-in for the target: it knows every text, and tells them apart by their first token."""

    dtype = jnp.dtype(jnp.float32)
    max_positions = CAPACITY

    def __init__(self, texts: np.ndarray, vocab_size: int):
        self.texts = nnx.Param(jnp.asarray(texts))
        self.vocab_size = vocab_size

    def cache_spec(self, num_slots: int, capacity: int) -> jax.ShapeDtypeStruct:
        """A cache that holds each slot's tokens instead of keys and values."""
        return jax.ShapeDtypeStruct((1, num_slots, capacity, 1, 1), jnp.float32)

    def __call__(
        self, batch: PackedBatch, cache: jax.Array, *, max_q_len: int
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the token after each row, as the row's hidden state [T, 1], and the cache."""
        del max_q_len
        tokens = batch.tokens.astype(jnp.float32)[:, None, None]
        cache = cache.at[0, batch.slot_ids, batch.positions].set(tokens, mode="drop")
        number = cache[0, jnp.minimum(batch.slot_ids, cache.shape[1] - 1), 0, 0, 0]
        place = jnp.minimum(batch.positions + 1, CAPACITY - 1)
        following = self.texts[...][number.astype(jnp.int32) % self.texts.shape[0], place]
        return following.astype(jnp.float32)[:, None], cache

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Logits that put all weight on the next token."""
        return jax.nn.one_hot(hidden[:, 0].astype(jnp.int32), self.vocab_size)


class Charged(NamedTuple):
    """The facts that decide what a step costs and yields.

    Attributes:
      rung: index into the ladder.
      cached: tokens in the cache, over all slots.
      emitted: tokens emitted.
    """

    rung: int
    cached: int
    emitted: int


class Simulation:
    """One way of drafting at one batch size, compiled once for all hardware."""

    def __init__(self, answers: Sequence[Answer], drafter: Drafter, size: int):
        texts, vocab_size = _renumbered(answers)
        self.ladder = make_ladder(size, drafter.draft_length, prefill_chunk=PREFILL_CHUNK)
        self._size, self._draft_length = size, drafter.draft_length
        self._steps: list[Charged] = []
        self._engine = SteppedEngine(
            Replay(texts, vocab_size),
            drafter,
            self.ladder,
            on_step=self._see,
            num_slots=size,
            capacity=CAPACITY,
        )
        prompts = [texts[n, : len(a.prompt) + 1].tolist() for n, a in enumerate(answers)]
        jobs = [Job(n, prompt, len(answers[n].output)) for n, prompt in enumerate(prompts)]
        self._waves = [jobs[n : n + size] for n in range(0, len(jobs) - size + 1, size)]
        self._texts = texts

    def run(self, costs: StepCosts | None) -> list[Charged]:
        """Runs one batch after another; returns the steps that read no prompt.

        Each batch runs until its last text ends. If slots were refilled, a large batch would read
        some prompt in almost every step.

        Args:
          costs: to plan with; None verifies every draft.
        """
        self._engine.use_costs(costs)
        self._steps = []
        for wave in self._waves:
            for finished in self._engine.run(wave):
                if finished is not None:
                    _check(finished, self._texts)
        return self._steps

    def costs(self, model: str, device: str) -> StepCosts:
        """Estimates the costs of this ladder's steps for a model on a device."""
        sizes = shape_of_model(named_config(model), jnp.dtype("bfloat16")).sizes
        slots, length = self._size, self._draft_length
        costs = estimated_costs(
            sizes, HARDWARE[device], self.ladder, num_slots=slots, draft_length=length
        )
        return without_prompts(costs, self.ladder, length)

    def _see(self, step: Step) -> None:
        if not step.reading:
            load = int(step.load.cached)
            self._steps.append(Charged(int(step.plan.rung), load, int(step.emitted.sum())))


def rate(steps: Sequence[Charged], costs: StepCosts) -> float:
    """Tokens per second of some steps at some costs."""
    rungs, cached, emitted = np.asarray(steps).T
    seconds = np.asarray(costs.rungs)[rungs] + np.asarray(costs.cached)[rungs] * cached
    return float(emitted.sum() / seconds.sum())


def main() -> None:
    """Simulates, prints a Markdown table and writes JSON."""
    options = _options()
    facts = machine()
    answers = _answers(options)
    results = [record for size in options.batch_sizes for record in _simulate(answers, size)]
    settings = vars(options) | {n: getattr(options, n).name for n in ("input", "answers", "output")}
    content = {"benchmark": "simulation", "machine": facts, "settings": settings}
    write_json(options.output, content | {"results": results})
    print(_table(results), describe(facts), sep="\n\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", type=Path, required=True, help="prompts in Spec-Bench's format")
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument(
        "--batch-sizes",
        type=numbers,
        default=[1, 4, 8, 16, 32, 64],
    )
    parser.add_argument(
        "--answers",
        type=Path,
        default=Path("answers.jsonl"),
        help="the model's answers; written if missing",
    )
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/simulation.json"))
    return parser.parse_args()


def _answers(options: argparse.Namespace) -> list[Answer]:
    """The default model's answers to prompts from all over the input; kept in a file."""
    if not options.answers.is_file():
        from emsjax import LLM, SamplingParams

        outputs = LLM(max_model_len=CAPACITY, drafter="none").chat(
            spread_evenly(read_prompts(options.input), options.prompts),
            SamplingParams(max_tokens=options.max_tokens),
        )
        lines = [to_json([o.prompt_token_ids, o.outputs[0].token_ids]) for o in outputs]
        options.answers.write_text("\n".join(lines) + "\n", encoding="utf-8")
    lines = options.answers.read_text(encoding="utf-8").splitlines()
    return [Answer(*json.loads(line)) for line in lines]


def _renumbered(answers: Sequence[Answer]) -> tuple[np.ndarray, int]:
    """Renumbers tokens, so that the vocabulary is no larger than needed, and numbers the texts.

    Returns:
      All texts, int32[N, S], each after its own number, and the size of the new vocabulary.
    """
    texts = np.zeros((len(answers), CAPACITY), np.int32)
    used = np.unique(np.concatenate([[*a.prompt, *a.output] for a in answers]))
    for number, answer in enumerate(answers):
        whole = np.searchsorted(used, [*answer.prompt, *answer.output]) + len(answers)
        texts[number, 0] = number
        texts[number, 1 : len(whole) + 1] = whole
    return texts, len(used) + len(answers)


def _simulate(answers: Sequence[Answer], size: int) -> list[dict[str, Any]]:
    """Speedups over plain decoding of each way of drafting, at one batch size."""
    simulations = {"plain": Simulation(answers, NoDrafter(), size)}
    for length in FIXED_LENGTHS:
        simulations[f"fixed {length}"] = Simulation(answers, PromptLookup(length), size)
    planned = Simulation(answers, PromptLookup(), size)
    unplanned = {way: simulation.run(None) for way, simulation in simulations.items()}
    records = []
    for name, place in itertools.product(MODELS, DEVICES):
        say(f"batch {size}: {name} on {place}")
        costs = {
            way: simulation.costs(name, place)
            for way, simulation in (simulations | {"planned": planned}).items()
        }
        steps = unplanned | {"planned": planned.run(costs["planned"])}
        rates = {way: rate(steps[way], costs[way]) for way in steps}
        speedup = {way: round(r / rates["plain"], 3) for way, r in rates.items() if way != "plain"}
        records.append({"model": name, "hardware": place, "batch_size": size, "speedup": speedup})
    return records


def _check(finished: Finished, texts: np.ndarray) -> None:
    """Checks that a text is the model's answer, without which the simulation means nothing."""
    start = len(finished.job.prompt)
    expected = texts[int(str(finished.job.key)), start : start + len(finished.token_ids)]
    assert list(finished.token_ids) == expected.tolist()


def _table(results: Sequence[dict[str, Any]]) -> str:
    ways = list(results[0]["speedup"])
    rows = [
        [
            f"{r['model']} on {r['hardware']}, batch {r['batch_size']}",
            *(f"{r['speedup'][way]:.2f}" for way in ways),
        ]
        for r in results
    ]
    return table(["speedup over plain decoding, simulated", *ways], rows)


if __name__ == "__main__":
    main()
