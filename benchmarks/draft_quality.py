"""Accepted tokens per step by draft length: shipped and other drafts, the target's first layers.

python -m benchmarks.draft_quality --input spec_bench.jsonl --output results.json
"""

import argparse
import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import (
    describe,
    machine,
    numbers,
    read_prompts,
    say,
    spread_evenly,
    write_json,
)
from emsjax.cli.markdown import table

if TYPE_CHECKING:
    from emsjax.engine.model import Model
    from emsjax.models.config import DecoderConfig

_RESULTS = Path("benchmarks/results/draft_quality.json")


def main() -> None:
    """Runs all drafters, prints a Markdown table and writes JSON."""
    options = _options()
    facts, results = machine(), []
    chats = spread_evenly(read_prompts(options.input), options.prompts)
    for name, make in _drafters(options.layers, options.trained).items():
        for length in options.lengths:
            accepted = _accepted(make, length, chats, options)
            results.append({"drafter": name, "draft_length": length, "accepted_a_step": accepted})
            say(f"{name}, {length}: {accepted:.3f}")
    names = {"input": options.input.name, "output": options.output.name}
    settings = vars(options) | names | {"trained": [path.name for path in options.trained]}
    content = {"benchmark": "draft_quality", "machine": facts, "settings": settings}
    write_json(options.output, content | {"results": results})
    print(_table(results, options.lengths), describe(facts), sep="\n\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", type=Path, required=True, help="prompts in Spec-Bench's format")
    parser.add_argument("--prompts", type=int, default=24, help="evenly from all categories")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--lengths", type=numbers, default=[1, 2, 3, 4, 6, 8])
    parser.add_argument(
        "--layers",
        type=numbers,
        default=[1, 2, 4],
        help="first layers of the target to draft with, comma-separated counts",
    )
    parser.add_argument(
        "--trained",
        type=Path,
        action="append",
        default=[],
        metavar="DIRECTORY",
        help="a draft for the default model, made by `emsjax.train`; may be repeated",
    )
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--output", type=Path, default=_RESULTS)
    return parser.parse_args()


def _drafters(layers: list[int], trained: list[Path]) -> dict[str, Callable[[int], Any]]:
    """Functions that make a drafter of a given draft length for the default model, by name."""
    from emsjax.loading.drafter import load_drafter, shipped_draft
    from emsjax.loading.families import model_config
    from emsjax.loading.load import load_model

    target = load_model(None)
    draft = shipped_draft(target)
    if draft is None:
        raise SystemExit("the default model has no shipped draft; reinstall the package")
    made: dict[str, Callable[[int], Any]] = {
        name: partial(load_drafter, path, target, dtype="auto", narrowest=4)
        for name, path in {"shipped": draft, **{path.name: path for path in trained}}.items()
    }
    config = model_config(target.hf_config)
    for count in layers:
        made[f"first {count} of {config.num_layers} layers"] = partial(
            _first_layers, target.model, config, count
        )
    return made


def _first_layers(target: "Model", whole: "DecoderConfig", count: int, length: int) -> Any:
    """A draft model of the target's first layers, its final norm and its output projection."""
    import jax
    from flax import nnx

    from emsjax.drafters import DraftModel
    from emsjax.models.decoder import DecoderLM

    config = dataclasses.replace(whole, num_layers=count)
    small = nnx.eval_shape(lambda: DecoderLM(config, rngs=nnx.Rngs(0), dtype=target.dtype))
    graphdef, shapes = nnx.split(small)
    weights = nnx.split(target)[1]
    cut = jax.tree.map(lambda x, shape: x[:count] if x.shape != shape.shape else x, weights, shapes)
    merge = partial(nnx.merge, graphdef)
    return DraftModel(f"{count} layers", cut, merge, target.vocab_size, length, narrowest=4)


def _accepted(make: Callable[[int], Any], length: int, chats: Any, options: Any) -> float:
    """The mean number of accepted tokens over the steps that verified a draft."""
    from emsjax import LLM, SamplingParams

    llm = LLM(
        drafter=make(length), planner=False, max_batch_size=options.batch_size, max_model_len=2048
    )
    outputs = llm.chat(chats, SamplingParams(max_tokens=options.max_tokens))
    accepted = sum(output.metrics.accepted_tokens for output in outputs)
    return accepted / sum(output.metrics.drafted_by_position[0] for output in outputs)


def _table(results: list[dict[str, Any]], lengths: list[int]) -> str:
    found = {(r["drafter"], r["draft_length"]): r["accepted_a_step"] for r in results}
    names = list(dict.fromkeys(r["drafter"] for r in results))
    rows = [[name, *(f"{found[name, length]:.2f}" for length in lengths)] for name in names]
    return table(["draft", *map(str, lengths)], rows)


if __name__ == "__main__":
    main()
