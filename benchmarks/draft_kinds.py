"""The kinds of trained drafts side by side: right guesses by depth, accepted tokens, sizes, cost.

python -m benchmarks.draft_kinds --trained run/draft --own-prompts run/own-prompts.jsonl \
    --spec-bench spec_bench.jsonl --output results.json
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.common import describe, machine, read_prompts, say, spread_evenly, write_json
from emsjax.cli.markdown import table
from emsjax.host.json_text import to_json

if TYPE_CHECKING:
    from emsjax.drafters import Drafter
    from emsjax.loading.load import LoadedModel

_RESULTS = Path("benchmarks/results/draft_kinds.json")
# Tokens of a chain, and of a tree for the kinds that branch.
CHAIN, TREE = 4, 7


def main() -> None:
    """Runs all drafts, prints a Markdown table and writes JSON."""
    options = _options()
    from emsjax.loading.load import load_model

    facts, target, results = machine(), load_model(None), []
    sets = {
        "own": _held_out(options.own_prompts, target, options.held_out)[: options.prompts],
        "spec-bench": spread_evenly(read_prompts(options.spec_bench), options.prompts),
    }
    for name, directory in _drafts(options.trained, target).items():
        results.append(_figures(name, directory, target, sets, options))
        say(to_json(results[-1]))
    files = ("own_prompts", "spec_bench", "output")
    names = {name: getattr(options, name).name for name in files}
    settings = vars(options) | names | {"trained": [result["draft"] for result in results]}
    content = {"benchmark": "draft_kinds", "machine": facts, "settings": settings}
    write_json(options.output, content | {"results": results})
    print(*(_table(results, each) for each in sets), describe(facts), sep="\n\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--trained",
        type=Path,
        action="append",
        default=[],
        metavar="DIRECTORY",
        help="a draft for the default model, made by `emsjax.train`; may be repeated",
    )
    parser.add_argument(
        "--own-prompts", type=Path, required=True, help="prompts of the training runs"
    )
    parser.add_argument("--spec-bench", type=Path, required=True, help="in Spec-Bench's format")
    parser.add_argument("--prompts", type=int, default=24, help="of each of the two sets")
    parser.add_argument("--held-out", type=float, default=0.05, help="as in the training runs")
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--costs", action="store_true", help="measure what drafting costs, too")
    parser.add_argument("--output", type=Path, default=_RESULTS)
    return parser.parse_args()


def _held_out(file: Path, target: "LoadedModel", share: float) -> list[list[dict[str, str]]]:
    """Returns chats that the training runs kept for evaluation."""
    from emsjax.train.batches import is_held_out
    from emsjax.train.corpus import read_prompts as read_ids

    lines = file.read_text(encoding="utf-8").splitlines()
    chats = [json.loads(line)["messages"] for line in lines]
    prompts = read_ids([file], target, 10**6)
    pairs = zip(chats, prompts, strict=True)
    return [chat for chat, prompt in pairs if is_held_out(prompt, share)]


def _drafts(trained: Sequence[Path], target: "LoadedModel") -> dict[str, Path]:
    from emsjax.loading.drafter import shipped_draft

    shipped = shipped_draft(target)
    named = {} if shipped is None else {"shipped": shipped}
    return named | {path.parent.name: path for path in trained}


def _figures(
    name: str, directory: Path, target: "LoadedModel", sets: dict[str, Any], options: Any
) -> dict[str, Any]:
    """Returns everything about one draft."""
    from safetensors import safe_open

    from emsjax import LLM
    from emsjax.drafters import HiddenTransfer, Recurrent
    from emsjax.loading.draft_checkpoint import read_manifest
    from emsjax.loading.drafter import load_drafter

    manifest = read_manifest(directory)
    with safe_open(directory / "draft.safetensors", "numpy") as file:
        sizes = {key: np.prod(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    numbers = int(sum(size for key, size in sizes.items() if key != "token_ids"))
    result: dict[str, Any] = {"draft": name, "kind": manifest.kind, "parameters": numbers}
    drafters: dict[str, Drafter] = {
        "chain": load_drafter(directory, target, CHAIN, dtype="auto", narrowest=4)
    }
    deeper = load_drafter(directory, target, TREE, dtype="auto", narrowest=4)
    if isinstance(deeper, Recurrent | HiddenTransfer):
        rows = 4 * options.batch_size
        drafters["tree"] = dataclasses.replace(deeper, beam_rows=rows)
    for shape, drafter in drafters.items():
        llm = LLM(
            drafter=drafter, planner=False, max_batch_size=options.batch_size, max_model_len=2048
        )
        for which, chats in sets.items():
            result[f"{shape}, {which}"] = _accepted(llm, chats, options.max_tokens)
    if options.costs:
        result["costs"] = {batch: _costs(drafters["chain"], batch) for batch in (1, 8)}
    return result


def _accepted(llm: Any, chats: Any, max_tokens: int) -> dict[str, Any]:
    """Returns the share of drafts that are right up to each depth, and accepted tokens a step."""
    from emsjax import SamplingParams

    outputs = llm.chat(chats, SamplingParams(max_tokens=max_tokens))
    accepted = np.sum([_padded(o.metrics.accepted_by_position) for o in outputs], axis=0)
    steps = sum(o.metrics.drafted_by_position[0] for o in outputs)
    by_depth = [round(float(x), 4) for x in accepted / steps]
    total = sum(o.metrics.accepted_tokens for o in outputs)
    return {"right_by_depth": by_depth, "accepted_a_step": round(total / steps, 4), "steps": steps}


def _padded(counts: Sequence[int]) -> np.ndarray:
    return np.pad(np.asarray(counts), (0, TREE - len(counts)))


def _costs(drafter: "Drafter", batch_size: int) -> dict[str, float]:
    """Returns milliseconds of drafting a chain, and of a step that verifies nothing."""
    from emsjax import LLM
    from emsjax.costs.measure import measure_costs

    llm = LLM(drafter=drafter, max_batch_size=batch_size, max_model_len=1024)
    costs = measure_costs(llm.engine).costs
    draft, step = 1000 * CHAIN * float(costs.draft), 1000 * float(costs.rungs[0])
    return {"draft_ms": round(draft, 2), "plain_step_ms": round(step, 2)}


def _table(results: Sequence[dict[str, Any]], which: str) -> str:
    rows = []
    for result in results:
        chain, tree = result[f"chain, {which}"], result.get(f"tree, {which}")
        costs = result.get("costs", {})
        shares = [f"{each['draft_ms'] / each['plain_step_ms']:.2f}" for each in costs.values()] or [
            "",
            "",
        ]
        rows.append(
            [
                result["draft"],
                f"{result['parameters'] / 1e6:.1f} M",
                *(f"{x:.2f}" for x in chain["right_by_depth"][:CHAIN]),
                f"{chain['accepted_a_step']:.2f}",
                "" if tree is None else f"{tree['accepted_a_step']:.2f}",
                *shares,
            ]
        )
    right = [f"right up to {depth}" for depth in range(1, CHAIN + 1)]
    accepted = [f"accepted, chain of {CHAIN}", f"accepted, tree of {TREE}"]
    cost = [f"draft ÷ step, batch {batch}" for batch in (1, 8)]
    return table([which, "parameters", *right, *accepted, *cost], rows)


if __name__ == "__main__":
    main()
