"""Time of a step by batch, context and capacity, pure and next to a slot that reads a prompt.

python -m benchmarks.steps --output results.json

A step is the model's forward pass over packed rows, with the logits of one row per slot. All
settings take turns. What decoding costs next to a prompt is the time of both together less that of
the prompt by itself.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.common import Spread, describe, machine, numbers, say, write_json
from emsjax.cli.markdown import table
from emsjax.engine.packing import PackedBatch, pack
from emsjax.loading.load import load_model

PROMPT = 240  # rows of the slot that reads a prompt, whose first token they begin with
HEADER = ("batch", "context", "capacity", "rows", "alone, ms", "next to a prompt, ms more")


class Setting(NamedTuple):
    """The work of a step.

    Attributes:
      batch: slots.
      context: tokens of each decoding slot.
      capacity: tokens that the cache has room for in each slot.
      rows: rows of each decoding slot; 0 if no slot decodes.
      prompt: rows of one more slot, which reads a prompt; 0 for none.
    """

    batch: int
    context: int
    capacity: int
    rows: int
    prompt: int = 0


def main() -> None:
    """Measures, prints a Markdown table and writes JSON."""
    options = _options()
    facts = machine()
    model = load_model(options.model, dtype=options.dtype).model
    settings = list(_settings(options))
    settings += [setting._replace(prompt=PROMPT) for setting in settings]
    settings += [Setting(0, 0, capacity, 0, PROMPT) for capacity in options.capacities]
    seconds: dict[Setting, list[float]] = {setting: [] for setting in settings}
    for turn in range(options.repeats):
        for setting in settings:
            seconds[setting].append(_time(model, setting))
        say(f"turn {turn + 1} of {options.repeats}")
    records = [
        {**setting._asdict(), "seconds": Spread.of(found).record()}
        for setting, found in seconds.items()
    ]
    written = vars(options) | {"output": options.output.name}
    content = {"benchmark": "steps", "machine": facts, "settings": written, "results": records}
    write_json(options.output, content)
    print("\n\n".join([table(HEADER, _rows(seconds)), describe(facts)]))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="default: emsjax's default model")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--batch-sizes", type=numbers, default=[1, 8, 16])
    parser.add_argument("--contexts", type=numbers, default=[40, 500, 990])
    parser.add_argument("--capacities", type=numbers, default=[1024, 2048])
    parser.add_argument("--rows", type=numbers, default=[1, 4])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/steps.json"))
    return parser.parse_args()


def _settings(options: argparse.Namespace) -> Iterator[Setting]:
    """The steps without a prompt; capacity and rows are varied at the longest context only."""
    longest, usual = max(options.contexts), options.capacities[0]
    for batch in options.batch_sizes:
        for context in options.contexts:
            yield Setting(batch, context, usual, options.rows[0])
        for rows in options.rows[1:]:
            yield Setting(batch, longest, usual, rows)
        for capacity in options.capacities[1:]:
            yield Setting(batch, longest, capacity, options.rows[0])


def _time(model: Any, setting: Setting, steps: int = 5) -> float:
    """Returns the least seconds of several steps; another run of the process may be in the way."""
    slots = setting.batch + bool(setting.prompt)
    spec = model.cache_spec(slots, setting.capacity)
    cache = jnp.zeros(spec.shape, spec.dtype)
    batch = jax.block_until_ready(_packed(setting))
    step = _program(model, max(setting.rows, setting.prompt))
    found = []
    for _ in range(steps + 1):
        started = time.perf_counter()
        logits, cache = jax.block_until_ready(step(batch, cache))
        found.append(time.perf_counter() - started)
    del logits
    return min(found[1:])  # the first one compiles


def _packed(setting: Setting) -> PackedBatch:
    """Returns the rows of a step, whose slots begin with those that decode."""
    reads = [setting.prompt] if setting.prompt else []
    q_lens = jnp.asarray([setting.rows] * setting.batch + reads, jnp.int32)
    starts = [setting.context - setting.rows] * setting.batch + [0] * len(reads)
    tokens = jnp.zeros((len(starts), setting.capacity), jnp.int32)
    needed = setting.rows * setting.batch + setting.prompt
    return pack(tokens, jnp.asarray(starts, jnp.int32), q_lens, needed)


_PROGRAMS: dict[int, Callable] = {}


def _program(model: Any, max_q_len: int) -> Callable:
    """Returns the compiled step for at most this many rows of a slot."""
    if max_q_len not in _PROGRAMS:
        graph, params = nnx.split(model)

        def step(params: Any, batch: PackedBatch, cache: jax.Array) -> tuple[jax.Array, jax.Array]:
            model = nnx.merge(graph, params)
            hidden, cache = model(batch, cache, max_q_len=max_q_len)
            return model.logits(hidden[batch.cu_q_lens[1:] - 1]), cache

        _PROGRAMS[max_q_len] = partial(jax.jit(step, donate_argnums=2), params)
    return _PROGRAMS[max_q_len]


def _rows(seconds: dict[Setting, list[float]]) -> Iterator[list[str]]:
    for setting, found in seconds.items():
        if setting.prompt:
            continue
        both = seconds[setting._replace(prompt=PROMPT)]
        prompt = seconds[Setting(0, 0, setting.capacity, 0, PROMPT)]
        more = [together - alone for together, alone in zip(both, prompt, strict=True)]
        cells = setting.batch, setting.context, setting.capacity, setting.rows
        times = (Spread.of([1e3 * each for each in times]).show() for times in (found, more))
        yield [*map(str, cells), *times]


if __name__ == "__main__":
    main()
