"""How often the target, seeing only sink tokens and a window, writes what it writes with all.

python -m benchmarks.window_agreement --input spec_bench.jsonl --prose FILE --length 4096

The model writes texts after long prompts. From places in them it drafts with `SelfWindow`, and the
drafts are compared with what it wrote. Results of other lengths in the output file are kept.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common import describe, machine, numbers, read_prompts, say, write_json
from emsjax.cli.markdown import table

_RESULTS = Path("benchmarks/results/window_agreement.json")
SINK_TOKENS = 4


class _Text(NamedTuple):
    kind: str
    tokens: list[int]


def main() -> None:
    """Measures one length, prints a Markdown table and writes JSON."""
    options = _options()
    facts = machine()
    results = [r for r in _earlier(options.output) if r["length"] != options.length]
    names = {"input": options.input.name, "prose": options.prose.name, "output": None}
    content = {"benchmark": "window_agreement", "machine": facts, "settings": vars(options) | names}
    for result in _measure(options):
        results.append(result)
        write_json(options.output, content | {"results": results})
    print(_table(results), describe(facts), sep="\n\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", type=Path, required=True, help="prompts in Spec-Bench's format")
    parser.add_argument("--prose", type=Path, required=True, help="a long plain text")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a prompt")
    parser.add_argument("--prompts", type=int, default=2, help="of each kind")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--windows", type=numbers, default=[256, 512, 1024])
    parser.add_argument(
        "--blocks",
        type=numbers,
        default=[0, 4],
        help="blocks of 64 tokens seen besides the window: those that the prompt attends to most",
    )
    parser.add_argument("--draft-length", type=int, default=4)
    parser.add_argument("--output", type=Path, default=_RESULTS)
    return parser.parse_args()


def _earlier(file: Path) -> list[dict[str, Any]]:
    return json.loads(file.read_text())["results"] if file.exists() else []


def _measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    from emsjax import LLM

    llm = LLM(
        drafter="none",
        max_batch_size=3 * options.prompts,
        max_model_len=options.length + options.max_tokens,
    )
    texts = list(_texts(llm, options))
    state = _written(llm.engine, texts, options.max_tokens)
    for window, blocks in itertools.product(options.windows, options.blocks):
        right = _right(llm, state, (window, blocks), options)
        for kind in dict.fromkeys(text.kind for text in texts):
            mine = [right[slot] for slot, text in enumerate(texts) if text.kind == kind]
            yield (found := _result(options.length, kind, (window, blocks), mine))
            say(str(found))


def _texts(llm: Any, options: argparse.Namespace) -> Iterator[_Text]:
    """Prompts of each kind, whose instruction or question comes after the long part."""
    tokenizer, room = llm.tokenizer, options.length - 64
    encode = tokenizer.encode
    summaries = [p.text for p in read_prompts(options.input, "summarization")]
    questions = [p.text for p in read_prompts(options.input, "rag")]
    prose = encode(options.prose.read_text(encoding="utf-8"))
    for number in range(options.prompts):
        documents = _filled(encode, summaries[number:], room)
        yield _Text("summaries", _chat(tokenizer, documents + "\n\nSummarise all of this."))
        documents = _filled(encode, questions[number + 1 :], room - len(encode(questions[number])))
        yield _Text("rag", _chat(tokenizer, documents + "\n\n" + questions[number]))
        first = number * len(prose) // options.prompts
        yield _Text("prose", prose[first : first + options.length])


def _filled(encode: Callable[[str], list[int]], documents: Iterable[str], room: int) -> str:
    """As many of the documents as there is room for, in tokens; at least one."""
    chosen, used = [], 0
    for document in documents:
        size = len(encode(document)) + 2
        if not chosen or used + size <= room:
            chosen.append(document)
            used += size
    return "\n\n".join(chosen)


def _chat(tokenizer: Any, text: str) -> list[int]:
    messages = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


def _written(engine: Any, texts: list[_Text], max_tokens: int) -> Any:
    """The engine's state after greedy decoding, with all K/V."""
    from emsjax.engine.job import Job

    state = engine.empty()
    for slot, text in enumerate(texts):
        prompt = text.tokens[: engine.capacity - max_tokens]
        state = engine.admit(state, slot, Job(slot, prompt, max_tokens), None)
    while bool(state.live.any()):
        state = engine.advance(state, 64, others_wait=False)
    say(f"prompts of {state.prompt_lens.tolist()} tokens, texts of {state.lens.tolist()}")
    return state


def _right(
    llm: Any, state: Any, seen: tuple[int, int], options: argparse.Namespace
) -> list[list[int]]:
    """How many tokens of each draft are right, for each slot and place.

    Places are taken from the last to the first, because a draft's rows write K/V after its place.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    from benchmarks.attended_blocks import attended, merge_on_blocks
    from emsjax.drafters import SelfWindow
    from emsjax.engine.model import View

    window, blocks = seen
    graphdef, weights = nnx.split(llm.target)
    merge = partial(nnx.merge, graphdef)
    if blocks:
        merge = merge_on_blocks(graphdef, attended(llm.target, state, blocks))
    drafter = SelfWindow(
        weights,
        merge,
        read_bytes=1,
        view=View(SINK_TOKENS, window),
        draft_length=options.draft_length,
    )

    def propose(cache: Any, weights: Any, state: Any, lens: jax.Array) -> tuple[Any, jax.Array]:
        here = state.replace(
            cache=cache, lens=lens, kv_lens=lens - 1, live=lens > 0, max_lens=lens + 2**16
        )
        draft, _ = drafter.propose(here, weights, lambda _: jnp.int32(options.draft_length))
        return draft.cache, draft.tokens

    run = jax.jit(propose, donate_argnums=0)
    cache, rest = jnp.copy(state.cache), state.replace(cache=jnp.zeros(()))
    tokens, lens = np.asarray(state.tokens), np.asarray(state.lens)
    firsts = np.asarray(state.prompt_lens)
    right: list[list[int]] = [[] for _ in lens]
    for back in range(options.draft_length, options.max_tokens):
        places = np.where(lens - back > firsts, lens - back, 0)
        cache, drafted = run(cache, weights, rest, jnp.asarray(places, jnp.int32))
        for slot in np.flatnonzero(places):
            truth = tokens[slot, places[slot] : places[slot] + options.draft_length]
            right[slot].append(int(np.cumprod(truth == np.asarray(drafted[slot])).sum()))
    return right


def _result(
    length: int, kind: str, seen: tuple[int, int], right: list[list[int]]
) -> dict[str, Any]:
    """Shares of drafts whose first tokens are right, so many each."""
    import numpy as np

    counts = np.asarray([count for each in right for count in each])
    most = int(counts.max(initial=0))
    shares = [float((counts > depth).mean()) for depth in range(most)]
    agreed = {"of_each_text": [float(np.mean(np.asarray(each) > 0)) for each in right if each]}
    where = {"length": length, "kind": kind, "window": seen[0], "blocks": seen[1]}
    where["drafts"] = len(counts)
    return where | {"right": shares} | agreed


def _table(results: list[dict[str, Any]]) -> str:
    rows = [
        [
            *(str(r[name]) for name in ("length", "kind", "window", "blocks")),
            *(f"{share:.2f}" for share in r["right"]),
        ]
        for r in results
    ]
    most = max(len(row) for row in rows)
    rows = [row + [""] * (most - len(row)) for row in rows]
    return table(["tokens", "text", "window", "blocks", *map(str, range(1, most - 3))], rows)


if __name__ == "__main__":
    main()
