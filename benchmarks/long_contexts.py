"""Expected speedup of `self-window` for a large model with long texts, from estimated step costs.

python -m benchmarks.long_contexts --output results.json

What share of drafts is right comes from `benchmarks.window_agreement`, so from the default model at
4,096 tokens. Nothing runs here.
"""

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import machine, numbers, write_json
from benchmarks.simulation import PLACES, Place
from emsjax.cli.markdown import table
from emsjax.costs.hardware import HARDWARE
from emsjax.costs.roofline import estimated_costs
from emsjax.drafters.self_window import DEFAULT_VIEW
from emsjax.engine.ladder import ladder_for
from emsjax.engine.step_costs import CAUTION, Passes, without_prompts

_RESULTS = Path("benchmarks/results")


def main() -> None:
    """Computes, prints a Markdown table and writes JSON."""
    options = _options()
    right = _agreement(options.agreement, options.length)
    places = [place for place in PLACES if place.model == options.model]
    results = [
        _speedups(place, size, context, right)
        for place, context in itertools.product(places, options.contexts)
        for size in dict.fromkeys((1, _largest(place, context)))
        if size
    ]
    names = {"agreement": options.agreement.name, "output": options.output.name}
    facts = {"benchmark": "long_contexts", "machine": machine(), "settings": vars(options) | names}
    content = facts | {"right": right}
    write_json(options.output, content | {"results": results})
    print(_table(results, [*right]))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--agreement", type=Path, default=_RESULTS / "window_agreement.json")
    parser.add_argument("--length", type=int, default=4096, help="tokens of the texts in that file")
    parser.add_argument("--model", default="llama-3-8b")
    parser.add_argument("--contexts", type=numbers, default=[8192, 16384, 32768])
    parser.add_argument("--output", type=Path, default=_RESULTS / "long_contexts.json")
    return parser.parse_args()


def _agreement(file: Path, length: int) -> dict[str, list[float]]:
    """Returns the shares of drafts whose first 1, 2, ... tokens are right, by kind of text."""
    seen = {"length": length, "window": DEFAULT_VIEW.window, "blocks": 0}
    every = json.loads(file.read_text(encoding="utf-8"))["results"]
    found = [r for r in every if all(r[name] == value for name, value in seen.items())]
    return {r["kind"]: r["right"] for r in found}


def _largest(place: Place, context: int) -> int:
    """Returns the largest power of two of samples that fit beside the weights, 0 for none."""
    sizes, memory = place.sizes, HARDWARE[place.device].usable_bytes
    fit = int(memory - sizes.weights_bytes) // (sizes.token_bytes * context)
    return 1 << (fit.bit_length() - 1) if fit > 0 else 0


def _speedups(
    place: Place, size: int, context: int, right: dict[str, list[float]]
) -> dict[str, Any]:
    """Returns the best speedup over plain decoding and its draft length, by kind of text."""
    sizes, hardware = place.sizes, HARDWARE[place.device]
    longest = max(map(len, right.values()))
    ladder = ladder_for(hardware.platform, size, longest)
    costs = estimated_costs(
        sizes,
        hardware,
        ladder,
        num_slots=size,
        draft_length=longest,
        drafter_bytes=round(sizes.step_bytes(1)),
        passes=Passes(longest, tokens=DEFAULT_VIEW.sink_tokens + DEFAULT_VIEW.window),
    )
    costs = without_prompts(costs, ladder, longest)
    seconds = np.asarray(costs.rungs) + np.asarray(costs.cached) * size * context
    rows = np.asarray([rung.capacity for rung in ladder])
    speedups = {}
    for kind, shares in right.items():
        rates = [
            (1 + sum(shares[:length]))
            / (length * float(costs.draft) + seconds[rows >= size * (1 + length)].min())
            for length in range(1, len(shares) + 1)
        ]
        best = int(np.argmax(rates))
        speedups[kind] = [round(float(rates[best] * seconds[0]), 3), best + 1]
    read = size * context * sizes.token_bytes / sizes.read_bytes
    facts = {"place": place.name, "batch_size": size, "context": context}
    return facts | {"kv_by_weights": round(read, 2), "speedup, draft_length": speedups}


def _table(results: Sequence[dict[str, Any]], kinds: Sequence[str]) -> str:
    rows = []
    for r in results:
        cells = (r["speedup, draft_length"][kind] for kind in kinds)
        facts = (str(r[name]) for name in ("place", "batch_size", "context", "kv_by_weights"))
        # Below this the planner drafts nothing.
        shown = (f"{x:.2f} ({n})" if x >= CAUTION else "none" for x, n in cells)
        rows.append([*facts, *shown])
    return table(["speedup", "batch", "context", "K/V read ÷ weights", *kinds], rows)


if __name__ == "__main__":
    main()
