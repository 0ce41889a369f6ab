"""Compares prompt lookup's output with plain decoding's, token for token.

python -m benchmarks.exactness --input spec_bench.jsonl --dtype bfloat16 --output results.json

Each prompt is decoded twice: in a batch with prompt lookup, and alone (one slot) by plain decoding.
The check "exact" runs with `exact=True`: it ends at the first differing token, with exit status 1.
The check "ladder" runs with the ladder, where a step's shape may decide between two nearly equal
tokens; it measures how often that happens.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.common import (
    Prompt,
    chat,
    describe,
    first_difference,
    machine,
    read_prompts,
    say,
    write_json,
)
from emsjax.cli.markdown import table
from emsjax.limits import KV_DTYPES, QUANTIZATIONS

CHECKS = ("exact", "ladder")


@dataclass(frozen=True)
class Difference:
    """A prompt whose two outputs differ.

    Attributes:
      prompt: the prompt's key.
      position: position of the first differing token, counted from 0.
      plain: plain decoding's token there; None if its output has ended.
      drafted: prompt lookup's token there; None if its output has ended.
      logit_gap: difference of the two tokens' logits, computed in one pass over all tokens before
        them; None if one of the outputs has ended.
    """

    prompt: str
    position: int
    plain: int | None
    drafted: int | None
    logit_gap: float | None = None


@dataclass
class Check:
    """The results of one check so far.

    Attributes:
      name: "exact" or "ladder".
      prompts: prompts compared.
      tokens: positions compared, all that at least one of the two outputs has.
      tokens_differing: positions at which the outputs differ. After a first difference the two
        continue different texts, so this says little; rates use `tokens_before_difference`.
      tokens_before_difference: positions before each prompt's first difference.
      differences: at most one for each prompt.
      target_steps: steps that prompt lookup took. If they are not far fewer than its tokens, the
        check has hardly tested drafts.
      lookup_tokens: tokens of prompt lookup's output.
      seconds: time of both decodings, compilation included.
    """

    name: str
    prompts: int = 0
    tokens: int = 0
    tokens_differing: int = 0
    tokens_before_difference: int = 0
    differences: list[Difference] = field(default_factory=list)
    target_steps: int = 0
    lookup_tokens: int = 0
    seconds: float = 0.0

    def add(self, prompt: Prompt, plain: Sequence[int], output: Any) -> None:
        """Compares plain decoding's tokens of one prompt with prompt lookup's output."""
        drafted = output.outputs[0].token_ids
        self.lookup_tokens += len(drafted)
        self.target_steps += output.metrics.target_steps
        longest = max(len(plain), len(drafted))
        same = sum(a == b for a, b in zip(plain, drafted, strict=False))
        self.prompts += 1
        self.tokens += longest
        self.tokens_differing += longest - same
        at = first_difference(plain, drafted)
        self.tokens_before_difference += longest if at is None else at
        if at is not None:
            found = Difference(prompt.key, at, _get(plain, at), _get(drafted, at))
            self.differences.append(found)
            say(f"{self.name}: prompt {prompt.key} differs at token {at}")

    def record(self) -> dict[str, Any]:
        """The results as a JSON object."""
        compared = self.tokens_before_difference + len(self.differences)
        return asdict(self) | {
            "prompts_differing": len(self.differences),
            "tokens_per_target_step": self.lookup_tokens / self.target_steps,
            "rate_of_prompts": len(self.differences) / self.prompts,
            "rate_of_tokens": len(self.differences) / compared,
        }


def _get(tokens: Sequence[int], position: int) -> int | None:
    return tokens[position] if position < len(tokens) else None


def main() -> int:
    """Runs the checks, prints a Markdown table and writes JSON."""
    options = _options()
    facts = machine()
    prompts = _spread_out(read_prompts(options.input, options.category))
    checks = [_run_check(name, prompts, options) for name in options.checks]
    records = [check.record() for check in checks]
    settings = vars(options) | {"input": options.input.name, "output": options.output.name}
    settings["model"] = Path(options.model).name if options.model else "default"
    content = {"benchmark": "exactness", "machine": facts, "settings": settings}
    write_json(options.output, content | {"results": records})
    print(_report(records, options, facts))
    return int(any(check.name == "exact" and check.differences for check in checks))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flag = argparse.BooleanOptionalAction
    parser.add_argument("--input", type=Path, required=True, help="prompts in Spec-Bench's format")
    parser.add_argument("--category", default="all", help="a category of the input, or all")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--quantize", choices=QUANTIZATIONS, help="as for LLM")
    parser.add_argument("--kv-dtype", choices=KV_DTYPES, help="as for LLM")
    parser.add_argument("--checks", type=_checks, default=list(CHECKS), metavar="exact,ladder")
    parser.add_argument(
        "--min-tokens", type=int, default=10_000, help="tokens to compare in each check"
    )
    parser.add_argument(
        "--prompts", type=int, help="most prompts; default: enough for --min-tokens"
    )
    parser.add_argument("--max-tokens", type=int, default=128, help="most new tokens per prompt")
    parser.add_argument("--batch-size", type=int, default=8, help="slots of prompt lookup")
    parser.add_argument("--ignore-eos", action=flag, default=False)
    parser.add_argument("--model", help="as for LLM; default: the default model")
    parser.add_argument("--max-model-len", type=int, help="as for LLM")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/exactness.json"))
    return parser.parse_args()


def _checks(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(CHECKS):
        raise argparse.ArgumentTypeError(
            f"{', '.join(unknown)} is unknown; choose from {', '.join(CHECKS)}"
        )
    return names


def _spread_out(prompts: list[Prompt]) -> list[Prompt]:
    """Sorts prompts: first one of each category, then a second one of each, and so on."""
    rank: dict[str, int] = {}
    ranks = []
    for prompt in prompts:
        rank[prompt.category] = rank.get(prompt.category, -1) + 1
        ranks.append(rank[prompt.category])
    return [prompt for _, prompt in sorted(zip(ranks, prompts, strict=True), key=lambda x: x[0])]


def _run_check(name: str, prompts: list[Prompt], options: argparse.Namespace) -> Check:
    """Compares prompts until enough tokens are compared, or an "exact" one differs."""
    check = Check(name)
    started = perf_counter()
    requests: dict[str, Any] = {}
    for prompt, request, plain, output in _outputs(name, prompts, options):
        check.add(prompt, plain, output)
        requests[prompt.key] = (request.prompt_token_ids, plain)
        say(f"{name}: {check.prompts} prompts, {check.tokens} of {options.min_tokens} tokens")
        if check.tokens >= options.min_tokens or (name == "exact" and check.differences):
            break
    check.seconds = perf_counter() - started
    if check.tokens < options.min_tokens and not check.differences:
        say(f"warning: {name}: only {check.tokens} tokens; give more prompts or --max-tokens")
    if check.differences:
        check.differences = _with_gaps(check.differences, requests, options)
    return check


def _outputs(
    name: str, prompts: list[Prompt], options: argparse.Namespace
) -> Iterator[tuple[Prompt, Any, Sequence[int], Any]]:
    """Yields each prompt with its request, plain decoding's tokens and prompt lookup's output."""
    exact = name == "exact"
    batched = _llm("prompt-lookup", options.batch_size, exact, options)
    alone = _llm("none", 1, exact, options)
    prompts = prompts[: options.prompts]
    # Enough prompts at a time for slots to be refilled, and few enough to stop in time.
    chunk = 3 * options.batch_size
    for first in range(0, len(prompts), chunk):
        some = prompts[first : first + chunk]
        requests = [_request(batched, prompt, options) for prompt in some]
        drafted = {output.request_id: output for output in batched.run(requests)}
        say(f"{name}: prompt lookup decoded {len(drafted)} prompts; now plain decoding, one by one")
        for prompt, request in zip(some, requests, strict=True):
            (plain,) = alone.run([request])
            yield prompt, request, plain.outputs[0].token_ids, drafted[prompt.key]


def _llm(drafter: str, batch_size: int, exact: bool, options: argparse.Namespace) -> Any:
    from emsjax import LLM

    return LLM(
        options.model,
        drafter=drafter,
        dtype=options.dtype,
        quantize=options.quantize,
        kv_dtype=options.kv_dtype,
        max_batch_size=batch_size,
        max_model_len=options.max_model_len,
        exact=exact,
    )


def _request(llm: Any, prompt: Prompt, options: argparse.Namespace) -> Any:
    from emsjax import SamplingParams

    params = SamplingParams(max_tokens=options.max_tokens, ignore_eos=options.ignore_eos)
    return llm.request(chat(prompt.text), params, prompt.key)


def _with_gaps(
    differences: list[Difference], requests: dict[str, Any], options: argparse.Namespace
) -> list[Difference]:
    """Adds the logit gaps. A small one is a near tie that rounding decided, a wide one is a bug."""
    from emsjax.loading.load import load_model

    kinds = {"quantize": options.quantize, "kv_dtype": options.kv_dtype}
    model = load_model(options.model, dtype=options.dtype, **kinds).model
    found = []
    for each in differences:
        gap = None
        if each.plain is not None and each.drafted is not None:
            prompt, plain = requests[each.prompt]
            logits = _next_logits(model, [*prompt, *plain[: each.position]])
            gap = abs(float(logits[each.plain]) - float(logits[each.drafted]))
        found.append(Difference(**asdict(each) | {"logit_gap": gap}))
    return found


def _next_logits(model: Any, tokens: list[int]) -> Any:
    """The logits [V] after `tokens`, computed in one step."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    from emsjax.engine.packing import pack
    from emsjax.shapes import round_up

    capacity = round_up(len(tokens), 512)  # Few shapes need few compilations.
    history = np.zeros((1, capacity), np.int32)
    history[0, : len(tokens)] = tokens
    precision = "highest" if model.dtype == jnp.float32 else None

    @nnx.jit
    def logits(model: Any, history: jax.Array, length: jax.Array) -> jax.Array:
        with jax.default_matmul_precision(precision):
            cache = jax.tree.map(jnp.zeros_like, model.cache_spec(1, capacity))
            batch = pack(history, jnp.zeros(1, jnp.int32), length[None], capacity)
            hidden, _ = model(batch, cache, max_q_len=capacity)
            return model.logits(hidden[length - 1][None])[0]

    return np.asarray(logits(model, history, np.int32(len(tokens))), np.float32)


def _report(
    records: list[dict[str, Any]], options: argparse.Namespace, facts: dict[str, Any]
) -> str:
    kinds = [options.dtype]
    kinds += [f"{options.quantize} weights"] if options.quantize else []
    kinds += [f"{options.kv_dtype} cache"] if options.kv_dtype else []
    title = (
        f"Prompt lookup at batch {options.batch_size} against plain decoding of each prompt "
        f"alone, {', '.join(kinds)}, up to {options.max_tokens} tokens per prompt:"
    )
    header = (
        "check",
        "prompts",
        "tokens",
        "tokens per step",
        "prompts that differ",
        "tokens per difference",
        "largest logit gap",
    )
    return "\n\n".join([title, table(header, map(_row, records)), describe(facts)])


def _row(record: dict[str, Any]) -> list[str]:
    rate = record["rate_of_tokens"]
    gaps = [d["logit_gap"] for d in record["differences"] if d["logit_gap"] is not None]
    return [
        record["name"],
        str(record["prompts"]),
        str(record["tokens"]),
        f"{record['tokens_per_target_step']:.2f}",
        f"{record['prompts_differing']} ({record['rate_of_prompts']:.1%})",
        f"{1 / rate:.0f}" if rate else "no difference",
        f"{max(gaps):.2g}" if gaps else "-",
    ]


if __name__ == "__main__":
    sys.exit(main())
