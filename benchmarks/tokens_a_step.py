"""Tokens a step of every drafter, by kind of text and temperature. Counts, so no quiet machine.

python -m benchmarks.tokens_a_step --input spec_bench.jsonl --temperatures 0,1
python -m benchmarks.tokens_a_step --input spec_bench.jsonl --datasets summarization,rag \
    --prompt-tokens 2048 --drafters prompt-lookup,self-window --output long.json

Every draft is verified, so a figure depends on the texts and the drafts, not on what steps cost.
"""

import argparse
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import chat, describe, machine, say, write_json
from emsjax.bench.prompts import CONVERSATION, SPEC_BENCH, read_datasets
from emsjax.cli.markdown import table
from emsjax.engine.drafter import passes_of

_RESULTS = Path("benchmarks/results/tokens_a_step.json")
# What `LLM` takes for each name; anything else is the directory of a draft.
DRAFTERS = {
    "prompt-lookup": {"drafter": "prompt-lookup"},
    "draft-model": {"drafter": "draft-model"},
    "combined": {"drafter": "combined"},
    "self-window": {"drafter": "draft-model", "draft_model": "self-window"},
    "combined self-window": {"drafter": "combined", "draft_model": "self-window"},
}


def main() -> None:
    """Runs all drafters, prints a Markdown table and writes JSON."""
    options = _options()
    facts, results = machine(), _earlier(options)
    for name in options.drafters.split(","):
        for result in _figures(name, options):
            results.append(result)
            shown = dict.fromkeys(f"{r['drafter']}@{r['draft_length']}" for r in results)
            names = {"input": options.input.name, "output": options.output.name}
            names |= {"drafters": ",".join(shown)}
            settings = vars(options) | names
            content = {"benchmark": "tokens_a_step", "machine": facts, "settings": settings}
            write_json(options.output, content | {"results": results})
    print(_table(results, options.datasets.split(",")), describe(facts), sep="\n\n")


def _earlier(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns the results in the file that are to be kept."""
    if not (options.append and options.output.is_file()):
        return []
    found: list[dict[str, Any]] = json.loads(options.output.read_text(encoding="utf-8"))["results"]
    return found


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", type=Path, required=True, help="prompts in Spec-Bench's format")
    parser.add_argument("--datasets", default=",".join((*SPEC_BENCH, CONVERSATION)))
    parser.add_argument(
        "--drafters",
        default="prompt-lookup,draft-model,combined",
        help="names or directories of trained drafts; NAME@K drafts at most K tokens",
    )
    parser.add_argument("--temperatures", default="0,1")
    parser.add_argument("--prompts", type=int, default=4, help="of each dataset")
    parser.add_argument(
        "--prompt-tokens",
        type=int,
        default=0,
        help="join prompts of a dataset to texts of about so many tokens; 0: take them as they are",
    )
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--draft-length", type=int, default=7)
    parser.add_argument("--append", action="store_true", help="to the results in the file")
    parser.add_argument("--output", type=Path, default=_RESULTS)
    return parser.parse_args()


def _prompts(options: argparse.Namespace, tokenizer: Any) -> dict[str, list[str]]:
    """Returns prompts of each dataset."""
    every, found = read_datasets([options.input], options.datasets.split(",")), {}
    for dataset, chats in every.items():
        texts = [messages[0]["content"] for messages in chats]
        found[dataset] = texts[:: max(len(texts) // options.prompts, 1)][: options.prompts]
        if options.prompt_tokens:
            joined = _joined(texts, tokenizer, options.prompt_tokens)
            found[dataset] = list(itertools.islice(joined, options.prompts))
    return found


def _joined(texts: Sequence[str], tokenizer: Any, size: int) -> Iterator[str]:
    """Yields texts of at most `size` tokens, each as many of these texts as fit."""
    chosen: list[str] = []
    used = 0
    for text in texts:
        length = len(tokenizer.encode(text))
        if chosen and used + length > size:
            yield "\n\n".join(chosen)
            chosen, used = [], 0
        chosen.append(text)
        used += length


def _figures(name: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    from emsjax import LLM, SamplingParams

    name, _, length = name.partition("@")
    given = DRAFTERS.get(name, {"drafter": "draft-model", "draft_model": name})
    llm = LLM(
        **given,
        planner=False,
        draft_length=int(length or options.draft_length),
        max_batch_size=options.batch_size,
        max_model_len=max(2048, options.prompt_tokens + 512 + options.max_tokens),
    )
    prompts = _prompts(options, llm.tokenizer)
    chats = [chat(text) for texts in prompts.values() for text in texts]
    datasets = np.repeat([*prompts], [len(texts) for texts in prompts.values()])
    for temperature in map(float, options.temperatures.split(",")):
        params = SamplingParams(temperature=temperature, max_tokens=options.max_tokens, seed=0)
        outputs = llm.chat(chats, params)
        found: dict[str, Any] = {"drafter": _shown(name), "temperature": temperature}
        found |= {"draft_length": llm.engine.drafter.draft_length}
        found |= {"read_mb_a_draft": _megabytes(llm.engine)}
        for dataset in prompts:
            mine = [o for o, of in zip(outputs, datasets, strict=True) if of == dataset]
            # The first token comes with the prompt.
            tokens = sum(o.metrics.emitted_tokens - 1 for o in mine)
            steps = sum(o.metrics.target_steps - 1 for o in mine)
            lengths = [len(o.prompt_token_ids) for o in mine]
            found[dataset] = {
                "tokens_a_step": round(tokens / max(steps, 1), 3),
                "tokens": tokens,
                "prompt_tokens": lengths,
            }
        say(str({k: v["tokens_a_step"] if isinstance(v, dict) else v for k, v in found.items()}))
        yield found


def _shown(name: str) -> str:
    """Returns the name of a drafter, of a trained draft that of its run."""
    path = Path(name)
    return path.parent.name if path.is_dir() else name


def _megabytes(engine: Any) -> float:
    """Returns the megabytes of weights that the passes of the longest draft read."""
    passes = passes_of(engine.drafter, engine.num_slots)
    return round(passes.price(passes.depth) * engine.drafter.read_bytes / 1e6, 1)


def _table(results: Sequence[dict[str, Any]], datasets: Sequence[str]) -> str:
    rows = [
        [
            f"{r['drafter']}@{r['draft_length']}",
            f"{r['temperature']:g}",
            f"{r['read_mb_a_draft']:.0f}",
            *(f"{r[dataset]['tokens_a_step']:.2f}" for dataset in datasets),
        ]
        for r in results
    ]
    return table(["tokens a step", "temperature", "MB a draft", *datasets], rows)


if __name__ == "__main__":
    main()
