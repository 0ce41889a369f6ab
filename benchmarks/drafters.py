"""Every drafter against plain decoding, by category and batch size, side by side.

python -m benchmarks.drafters --input spec_bench.jsonl --output results.json
"""

import argparse
import multiprocessing
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import (
    Spread,
    chat,
    describe,
    machine,
    read_prompts,
    say,
    table,
    write_json,
)
from benchmarks.worker import Case, Run, Tokens, Worker

PLAIN = "none"
# Spec-Bench's own grouping: what is in none of these is its multi-turn conversations.
SINGLE_TURN = ("summarization", "rag", "qa", "math_reasoning", "translation")
CONVERSATION = "mt_bench"
WARM_UP_TOKENS = 4


@dataclass
class Cell:
    """Runs of one method on one category at one batch size; entries are repetitions."""

    method: str
    category: str
    batch_size: int
    runs: list[Run] = field(default_factory=list)

    @property
    def tokens_per_step(self) -> float:
        """Emitted tokens a target step."""
        run = self.runs[-1]
        return sum(map(len, run.tokens)) / run.target_steps


def main() -> None:
    """Measures, prints a Markdown table a batch size and writes JSON after each of them."""
    options = _options()
    facts, cells = machine(), []
    prompts = _prompts(options)
    with tempfile.TemporaryDirectory() as compile_cache:
        for size in options.batch_sizes:
            cells += _measure(size, prompts, options, compile_cache)
            settings = vars(options) | {"input": options.input.name, "output": options.output.name}
            records = _records(cells)
            content = {"benchmark": "drafters", "machine": facts, "settings": settings}
            write_json(options.output, content | {"results": records})
    for size in options.batch_sizes:
        print(_table([r for r in records if r["batch_size"] == size], size), end="\n\n")
    print(describe(facts))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flag = argparse.BooleanOptionalAction
    parser.add_argument("--input", type=Path, required=True, help="prompts in Spec-Bench's format")
    parser.add_argument("--prompts", type=int, default=24, help="of each category")
    parser.add_argument("--categories", type=_names, default=[*SINGLE_TURN, CONVERSATION])
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--batch-sizes", type=_numbers, default=[1, 2, 4, 8, 16, 24])
    parser.add_argument(
        "--methods",
        type=_names,
        default=["prompt-lookup", "draft-model", "combined"],
        help="drafters; NAME@K drafts K tokens every time, without the planner",
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ignore-eos", action=flag, default=False, help="equal work for all")
    parser.add_argument("--max-model-len", type=int, default=2048)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/drafters.json"))
    return parser.parse_args()


def _names(text: str) -> list[str]:
    return text.split(",")


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _prompts(options: argparse.Namespace) -> dict[str, list[Tokens]]:
    """Token ids by category, evenly taken from the file."""
    texts: dict[str, list[str]] = {category: [] for category in options.categories}
    for prompt in read_prompts(options.input):
        category = prompt.category if prompt.category in SINGLE_TURN else CONVERSATION
        if category in texts:
            texts[category].append(prompt.text)
    # In a process of its own: jax in this one would only take memory.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return {c: pool.apply(_encode, (_evenly(t, options.prompts),)) for c, t in texts.items()}


def _evenly(texts: list[str], count: int) -> list[str]:
    return texts[:: max(len(texts) // count, 1)][:count]


def _encode(texts: Sequence[str]) -> list[Tokens]:
    from emsjax.loading.load import find_model

    tokenizer = find_model(None).tokenizer()
    return [
        list(tokenizer.apply_chat_template(chat(text), add_generation_prompt=True)["input_ids"])
        for text in texts
    ]


def _measure(
    size: int, prompts: dict[str, list[Tokens]], options: argparse.Namespace, compile_cache: str
) -> list[Cell]:
    """All methods at one batch size; repetitions take turns."""
    workers = [_start(method, size, options, compile_cache) for method in _methods(options)]
    for worker in workers:
        worker.generate(next(iter(prompts.values()))[:size], WARM_UP_TOKENS)
    cells = []
    for category, some in prompts.items():
        row = [Cell(worker.case.method, category, size) for worker in workers]
        for number in range(options.repeats):
            turn = list(zip(workers, row, strict=True))
            for worker, cell in turn[number % len(turn) :] + turn[: number % len(turn)]:
                cell.runs.append(worker.generate(some, options.max_tokens))
        say(f"batch {size}, {category}: " + ", ".join(f"{c.tokens_per_step:.2f}" for c in row))
        cells += row
    for worker in workers:
        worker.close()
    return cells


def _methods(options: argparse.Namespace) -> list[str]:
    return [PLAIN, *(method for method in options.methods if method != PLAIN)]


def _start(method: str, size: int, options: argparse.Namespace, compile_cache: str) -> Worker:
    say(f"starting {method} at batch {size}")
    return Worker(
        Case(
            method=method,
            batch_size=size,
            model=None,
            hf_directory="",
            dtype="float32",
            ignore_eos=options.ignore_eos,
            exact=False,
            max_model_len=options.max_model_len,
            compile_cache=compile_cache,
            torch_threads=1,
        )
    )


def _records(cells: list[Cell]) -> list[dict[str, Any]]:
    plain = {(c.category, c.batch_size): c for c in cells if c.method == PLAIN}
    return [_record(cell, plain[cell.category, cell.batch_size]) for cell in cells]


def _record(cell: Cell, plain: Cell) -> dict[str, Any]:
    """One cell's figures; the speedup is taken within each repetition."""
    ratios = [b.seconds / a.seconds for a, b in zip(cell.runs, plain.runs, strict=True)]
    run = cell.runs[-1]
    pairs = zip(run.tokens, plain.runs[-1].tokens, strict=True)
    return {
        "method": cell.method,
        "category": cell.category,
        "batch_size": cell.batch_size,
        "prompts": len(run.tokens),
        "tokens": sum(map(len, run.tokens)),
        "seconds": [r.seconds for r in cell.runs],
        "speedup": Spread.of(ratios).record(),
        "tokens_per_target_step": cell.tokens_per_step,
        "drafted_by_position": run.drafted,
        "accepted_by_position": run.accepted,
        "prompts_differing": sum(ours != theirs for ours, theirs in pairs),
        "others_cores_worst": max(r.others_cores or 0.0 for r in cell.runs),
    }


def _table(records: list[dict[str, Any]], size: int) -> str:
    """Speedup and tokens a step, a line a category and one for all."""
    methods = list(dict.fromkeys(r["method"] for r in records if r["method"] != PLAIN))
    categories = list(dict.fromkeys(r["category"] for r in records))
    by_cell = {(r["method"], r["category"]): r for r in records}

    def cells(category: str) -> list[str]:
        found = [by_cell[method, category] for method in methods]
        return [f"{r['speedup']['median']:.2f} ({r['tokens_per_target_step']:.2f})" for r in found]

    rows = [[category, *cells(category)] for category in categories]
    rows.append(["all", *(f"{_overall(by_cell, m, categories):.2f}" for m in methods)])
    header = [f"batch {size}: speedup (tokens a step)", *methods]
    return table(header, rows)


def _overall(
    by_cell: dict[tuple[str, str], dict[str, Any]], method: str, categories: list[str]
) -> float:
    """Plain decoding's time for all categories over the method's; median of the repetitions."""
    ours, plain = (
        [sum(turn) for turn in zip(*(by_cell[m, c]["seconds"] for c in categories), strict=True)]
        for m in (method, PLAIN)
    )
    return Spread.of(b / a for a, b in zip(ours, plain, strict=True)).median


if __name__ == "__main__":
    main()
