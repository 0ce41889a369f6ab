"""Perplexity and greedy agreement of a model with int8 or 4-bit weights and an int8 K/V cache.

python -m benchmarks.quantised --input spec_bench.jsonl

All models read the same text, in windows that begin with an empty cache. The text is the prompts'
own, from all categories. Weights are in 4 bits only if the model's file has them so, since nothing
rounds weights to 4 bits. The report replaces the one of the same model in the output.
"""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from benchmarks.common import describe, machine, read_prompts, say
from emsjax.cli.markdown import table

if TYPE_CHECKING:
    from emsjax.engine.model import Model

_RESULTS = Path("benchmarks/results/quantised.md")
# What is quantised in each row after the first: options of `load_model`, by the row's name.
_KINDS = {
    "int8 weights": {"quantize": "int8"},
    "int8 cache": {"kv_dtype": "int8"},
    "int8 weights and cache": {"quantize": "int8", "kv_dtype": "int8"},
    "the file's 4-bit weights": {"quantize": "int4"},
    "the file's 4-bit weights, int8 cache": {"quantize": "int4", "kv_dtype": "int8"},
}


class Window(NamedTuple):
    """The comparison of two models on one window, as sums over its positions.

    Attributes:
      positions: positions whose next token is known.
      plain: negative log-likelihood of the next tokens by the model as it is.
      quantised: the same by the quantised model.
      same: positions at which both find the same token most likely.
      divergence: Kullback-Leibler divergence of the quantised model's predictions.
    """

    positions: int
    plain: float
    quantised: float
    same: int
    divergence: float


def main() -> None:
    """Compares the models, and writes and prints a Markdown report."""
    options = _options()
    from emsjax.loading.load import load_model

    plain = load_model(options.model)
    about = plain.name, str(plain.model.dtype)
    windows = list(_windows(plain.tokenizer, options))
    if not windows:
        raise SystemExit(f"{options.input} is shorter than one window; give a smaller --window")
    expected = list(_predicted(plain.model, windows))
    del plain  # models are large, and so one is in memory at a time
    compared = {}
    for name, kind in _KINDS.items():
        if found := _compared_with(kind, expected, windows, options.model):
            compared[name] = found
            say(f"{name}: {len(windows)} windows")
    report = _report(*about, compared, options)
    options.output.write_text(_replaced(options.output, report), encoding="utf-8")
    print(report)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", type=Path, required=True, help="prompts in Spec-Bench's format")
    parser.add_argument("--model", help="as for generate (default: the same)")
    parser.add_argument("--window", type=int, default=512, help="tokens read together")
    parser.add_argument("--windows", type=int, default=16, help="at even distances in the text")
    parser.add_argument("--output", type=Path, default=_RESULTS)
    return parser.parse_args()


def _compared_with(
    kind: dict[str, str], expected: list[np.ndarray], windows: list[np.ndarray], name: str | None
) -> list[Window]:
    """Compares a quantised model with what is expected; returns nothing if it has no 4 bits."""
    from emsjax.errors import UserError
    from emsjax.loading.load import load_model

    try:
        model = load_model(name, **kind).model
    except UserError as error:
        if kind.get("quantize") != "int4":
            raise
        say(str(error))
        return []
    found = _predicted(model, windows)
    return [_compared(*each) for each in zip(expected, found, windows, strict=True)]


def _windows(tokenizer: Any, options: argparse.Namespace) -> Iterator[np.ndarray]:
    """Yields windows of tokens int32[window], at even distances in the text."""
    text = "\n\n".join(prompt.text for prompt in read_prompts(options.input))
    tokens = np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)
    whole = len(tokens) // options.window
    for number in range(0, whole, max(whole // options.windows, 1))[: options.windows]:
        yield tokens[number * options.window :][: options.window]


def _predicted(model: "Model", windows: list[np.ndarray]) -> Iterator[np.ndarray]:
    """Yields log-probabilities float32[window, V] of the tokens after each of every window's."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from emsjax.engine.packing import pack

    window = len(windows[0])
    graphdef, params = nnx.split(model)
    cache = jax.tree.map(jnp.zeros_like, model.cache_spec(1, window))

    @jax.jit
    def predict(params: Any, tokens: jax.Array) -> jax.Array:
        whole = nnx.merge(graphdef, params)
        batch = pack(tokens, jnp.zeros(1, jnp.int32), jnp.full(1, window, jnp.int32), window)
        hidden, _ = whole(batch, cache, max_q_len=window)
        return jax.nn.log_softmax(whole.logits(hidden), axis=1)

    for tokens in windows:
        yield np.asarray(predict(params, jnp.asarray(tokens)[None]))


def _compared(plain: np.ndarray, quantised: np.ndarray, tokens: np.ndarray) -> Window:
    places, following = np.arange(len(tokens) - 1), tokens[1:]
    plain, quantised = plain[:-1], quantised[:-1]
    return Window(
        positions=len(places),
        plain=-float(plain[places, following].sum(dtype=np.float64)),
        quantised=-float(quantised[places, following].sum(dtype=np.float64)),
        same=int((plain.argmax(axis=1) == quantised.argmax(axis=1)).sum()),
        divergence=float((np.exp(plain) * (plain - quantised)).sum(dtype=np.float64)),
    )


def _report(
    name: str, dtype: str, windows: dict[str, list[Window]], options: argparse.Namespace
) -> str:
    first = next(iter(windows.values()))
    positions = sum(each.positions for each in first)
    plain = math.exp(sum(each.plain for each in first) / positions)
    rows = [[dtype, f"{plain:.3f}", "", "", ""]]
    rows += [[kind, *_row(plain, found)] for kind, found in windows.items()]
    header = ["numbers", "perplexity", "change", "same most likely token", "KL divergence"]
    about = (
        f"{positions} positions in {len(first)} windows of {options.window} tokens of "
        f"{options.input.name}, by `python -m benchmarks.quantised`; {describe(machine())}."
    )
    title = f"# Quantised weights and cache of {name}"
    return "\n\n".join([title, about, table(header, rows)]) + "\n"


def _replaced(file: Path, report: str) -> str:
    """Returns a file's content with a report in place of its own of that model, or at its end."""
    content = file.read_text(encoding="utf-8") if file.exists() else ""
    sections = [f"# {part}" for part in content.removeprefix("# ").split("\n# ") if part]
    titles = [section.partition("\n")[0] for section in sections]
    title = report.partition("\n")[0]
    place = titles.index(title) if title in titles else len(sections)
    return "\n".join([*sections[:place], report, *sections[place + 1 :]])


def _row(plain: float, windows: list[Window]) -> list[str]:
    """Returns the figures of a quantised model, next to the perplexity of the model as it is."""
    total = Window(*(sum(numbers) for numbers in zip(*windows, strict=True)))
    perplexity = math.exp(total.quantised / total.positions)
    # How far the change might be off: its standard error over the windows.
    changes = [(each.quantised - each.plain) / each.positions for each in windows]
    error = float(np.std(changes, ddof=1)) / math.sqrt(len(changes)) if len(changes) > 1 else 0.0
    return [
        f"{perplexity:.3f}",
        f"{perplexity / plain - 1:+.2%} (± {error:.2%})",
        f"{total.same / total.positions:.2%}",
        f"{total.divergence / total.positions:.4f}",
    ]


if __name__ == "__main__":
    main()
