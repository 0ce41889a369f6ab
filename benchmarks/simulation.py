"""Expected speedup on other hardware: trees, chains and fixed drafts, from recorded drafts.

python -m benchmarks.drafts --input spec_bench.jsonl --output drafts.npz
python -m benchmarks.simulation --drafts drafts.npz --output results.json

The real loop, drafters and planner decode recorded texts again, and each step is charged what it
costs on the simulated hardware.
"""

import argparse
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from benchmarks.common import describe, machine, numbers, say, write_json
from benchmarks.drafts import read
from benchmarks.replayed import PREFILL_CHUNK, Replayed, Simulation, Texts, rate
from emsjax.cli.markdown import table
from emsjax.costs.hardware import HARDWARE
from emsjax.costs.roofline import BANDWIDTH_SHARE, COMPUTE_SHARE, estimated_costs
from emsjax.drafters import NoDrafter, PromptLookup
from emsjax.drafters.beam import WIDEST
from emsjax.drafters.combined import Combined
from emsjax.drafters.prompt_lookup import MOST_MATCHES
from emsjax.engine.drafter import Drafter
from emsjax.engine.ladder import Rung, make_ladder, narrowest_rows
from emsjax.engine.sizes import Sizes
from emsjax.engine.step_costs import StepCosts, without_prompts
from emsjax.limits import DRAFT_LENGTH
from emsjax.loading.build import shape_of_model
from emsjax.loading.named import named_config

# A pass of the draft reads this share of the model's weights, as that of the default model does.
DRAFT_SHARE = 0.06
# Steps of the default model in float32 on two cores of an AMD EPYC (Zen 4), as emsjax measured them
# in November 2026 at batch 1, 8 and 16: ms by rows with an empty cache, us for a cached token, and
# ms for a pass of the draft at those batch sizes.
MEASURED_ROWS = {
    1: 18.5,
    8: 19.5,
    16: 24.0,
    24: 35.0,
    32: 38.0,
    48: 56.0,
    64: 61.0,
    96: 85.0,
    128: 107.0,
}
MEASURED_CACHED, MEASURED_DRAFT = 1.1, {1: 0.9, 8: 1.2, 16: 1.6}


@dataclass(frozen=True)
class Place:
    """A model on a device; without a model, the default one on two measured cores."""

    model: str | None
    device: str
    quantize: str | None = None

    @property
    def name(self) -> str:
        """For display."""
        if self.model is None:
            return "SmolLM2-135M on 2 cores"
        return f"{self.model} on {self.device}{' in int8' if self.quantize else ''}"

    @property
    def sizes(self) -> Sizes:
        """Of the model, in bfloat16 unless it is quantised."""
        assert self.model is not None
        config, dtype = named_config(self.model), jnp.dtype("bfloat16")
        sizes: Sizes = shape_of_model(config, dtype, self.quantize).sizes
        return sizes

    def costs(self, ladder: Sequence[Rung], size: int, length: int, rows: int) -> StepCosts:
        """Returns the costs of steps.

        Args:
          ladder: the rungs.
          size: B.
          length: k.
          rows: of a pass of the draft.
        """
        if self.model is None:
            costs = _measured(ladder, size)
        else:
            sizes, hardware = self.sizes, HARDWARE[self.device]
            costs = estimated_costs(sizes, hardware, ladder, num_slots=size, draft_length=length)
            weights = DRAFT_SHARE * sizes.read_bytes
            reading = weights / (hardware.bytes_per_second * BANDWIDTH_SHARE)
            products = DRAFT_SHARE * (sizes.row_flops + sizes.logit_flops) * rows
            computing = products / (hardware.rate(sizes.itemsize) * COMPUTE_SHARE)
            costs = costs._replace(draft=np.float32(max(reading, computing)))
        return without_prompts(costs, ladder, length)


PLACES = (
    Place(None, "cpu"),
    *(
        Place(model, device, quantize)
        for model, (device, quantize) in itertools.product(
            ("llama-3-8b", "qwen3-8b"), (("v5e", "int8"), ("v6e", None), ("h100", None))
        )
    ),
)


def _measured(ladder: Sequence[Rung], size: int) -> StepCosts:
    capacities = [rung.capacity for rung in ladder]
    rows = np.interp(capacities, [*MEASURED_ROWS], [*MEASURED_ROWS.values()])
    rows += np.maximum(np.asarray(capacities) - max(MEASURED_ROWS), 0) * 0.7
    draft = np.interp(size, [*MEASURED_DRAFT], [*MEASURED_DRAFT.values()])
    cached = np.full(len(ladder), MEASURED_CACHED * 1e-6, np.float32)
    return StepCosts(rows.astype(np.float32) * 1e-3, cached, np.float32(draft * 1e-3))


class Way(NamedTuple):
    """A way of drafting.

    Attributes:
      drafter: "lookup", "model" or "both".
      tree: whether drafts branch.
      length: the most guesses.
      planned: whether the planner decides how many are verified; else all are.
    """

    drafter: str
    tree: bool
    length: int
    planned: bool

    @property
    def name(self) -> str:
        """For display."""
        shape = "tree" if self.tree else "chain"
        return f"{self.drafter} {shape} {self.length}{', planned' if self.planned else ''}"

    def make(self, texts: Texts) -> Drafter:
        """Makes the drafter."""
        lookup = PromptLookup(self.length, matches=MOST_MATCHES if self.tree else 1)
        if self.drafter == "lookup":
            return lookup
        draft = texts.drafts["tree" if self.tree else "chain"]
        model = Replayed(draft, self.length, self.tree)
        return model if self.drafter == "model" else Combined(lookup, model, tree=self.tree)


WAYS = [
    *(Way("lookup", False, length, False) for length in (1, 3, 7)),
    *(Way("model", False, length, False) for length in (1, 2, 3, 5, 7)),
    *(Way("model", True, length, False) for length in (7, 15)),
    *(Way("both", True, length, False) for length in (7, 15)),
    Way("lookup", True, DRAFT_LENGTH, True),
    Way("model", False, DRAFT_LENGTH, True),
    Way("model", True, DRAFT_LENGTH, True),
    Way("both", False, DRAFT_LENGTH, True),
    *(Way("both", True, length, True) for length in (DRAFT_LENGTH, 15, 23)),
]


def main() -> None:
    """Simulates, prints a Markdown table and writes JSON."""
    options = _options()
    facts, texts = machine(), Texts.of(read(options.drafts))
    ways = [way for way in WAYS if options.ways is None or way.name in options.ways.split(";")]
    places = [place for place in PLACES if place.model is not None or not options.accelerators]
    results = []
    for size in options.batch_sizes:
        results += _simulate(texts, size, ways, places)
        say(table_of(results[-len(places) :]))
    if options.append and options.output.is_file():
        results = json.loads(options.output.read_text(encoding="utf-8"))["results"] + results
    results.sort(key=lambda r: (r["place"], r["batch_size"]))
    settings = {"ways": [way.name for way in ways]}
    content = {"benchmark": "simulation", "machine": facts, "settings": settings}
    write_json(options.output, content | {"results": results})
    print(table_of(results), describe(facts), sep="\n\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--drafts", type=Path, required=True, help="made by benchmarks.drafts")
    parser.add_argument("--batch-sizes", type=numbers, default=[1, 4, 8, 16, 32, 64])
    parser.add_argument("--ways", help="names separated by semicolons; all by default")
    parser.add_argument(
        "--accelerators", action="store_true", help="leave out the default model on two cores"
    )
    parser.add_argument("--append", action="store_true", help="to the results in the file")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/simulation.json"))
    return parser.parse_args()


def _simulate(
    texts: Texts, size: int, ways: Sequence[Way], places: Sequence[Place]
) -> list[dict[str, Any]]:
    """Speedups over plain decoding of each way of drafting in all places, at one batch size."""
    bare = _ladder("other", size, 0)
    plain = Simulation(texts, NoDrafter(), bare, size).run(None)
    results = [
        {"place": place.name, "batch_size": size, "texts": len(texts.texts)}
        | {"speedup": {}, "tokens_a_step": {}}
        for place in places
    ]
    kinds = dict.fromkeys("cpu" if place.model is None else "other" for place in places)
    for way in ways:
        ladders = {kind: _ladder(kind, size, way.length) for kind in kinds}
        runs = {
            ladder: Simulation(texts, way.make(texts), ladder, size) for ladder in ladders.values()
        }
        whole = {} if way.planned else {ladder: run.run(None) for ladder, run in runs.items()}
        for place, result in zip(places, results, strict=True):
            ladder = ladders["cpu" if place.model is None else "other"]
            rows = size * (WIDEST if way.tree else 1)
            costs = place.costs(ladder, size, way.length, rows)
            steps = whole[ladder] if whole else runs[ladder].run(costs)
            base = place.costs(bare, size, 0, size)
            speedup = rate(steps, costs) / rate(plain, base)
            result["speedup"][way.name] = round(speedup, 3)
            emitted = steps.emitted.sum() / len(steps.emitted) / size
            result["tokens_a_step"][way.name] = round(float(emitted), 2)
        say(f"batch {size}: {way.name}")
    return results


def _ladder(kind: str, size: int, length: int) -> tuple[Rung, ...]:
    narrowest = narrowest_rows(kind)
    return make_ladder(size, length, narrowest=narrowest, prefill_chunk=PREFILL_CHUNK)


def table_of(results: Sequence[dict[str, Any]]) -> str:
    """A Markdown table of the best fixed draft and of each planned one."""
    names = dict.fromkeys(name for r in results for name in r["speedup"])
    planned = [name for name in names if "planned" in name]
    rows = []
    for r in results:
        speedup = r["speedup"]
        fixed = [name for name in speedup if name not in planned]
        best = max(fixed, key=lambda name: speedup[name], default=None)
        rows.append(
            [
                f"{r['place']}, {r['batch_size']}",
                "" if best is None else f"{speedup[best]:.2f} ({best})",
                *(f"{speedup[name]:.2f}" if name in speedup else "" for name in planned),
            ]
        )
    return table(["speedup, simulated; batch", "best fixed", *planned], rows)


if __name__ == "__main__":
    main()
