"""Compares the predicted acceptance of draft tokens with the real one, as scores and a plot.

python -m benchmarks.calibration --input spec_bench.jsonl --output results.json
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.common import describe, machine, numbers, read_prompts, spread_evenly, write_json
from emsjax.bench.stepped import Step, SteppedEngine
from emsjax.cli.markdown import table

BINS = 10


class Outcome(NamedTuple):
    """One verified draft token, after all tokens before it in its draft were accepted.

    Attributes:
      predicted: the predicted probability that it is accepted.
      said: the drafter's own confidence.
      right: whether it was accepted.
      source: 0 if it was looked up, 1 if a model drafted it.
    """

    predicted: float
    said: float
    right: bool
    source: int


def main() -> None:
    """Runs all settings, draws the plot, prints scores and writes JSON."""
    options = _options()
    facts = machine()
    results = []
    for drafter in options.drafters.split(","):
        for size in options.batch_sizes:
            outcomes = _outcomes(drafter, size, options)
            results.append({"drafter": drafter, "batch_size": size, **_scores(outcomes)})
    settings = vars(options) | {"input": options.input.name, "output": options.output.name}
    content = {"benchmark": "calibration", "machine": facts, "settings": settings}
    write_json(options.output, content | {"results": results})
    _draw(results, options.output.with_suffix(".png"))
    print(_table(results), describe(facts), sep="\n\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", type=Path, required=True, help="prompts in Spec-Bench's format")
    parser.add_argument("--prompts", type=int, default=48, help="evenly from all categories")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--batch-sizes", type=numbers, default=[1, 8])
    parser.add_argument("--drafters", default="prompt-lookup")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/calibration.json"))
    return parser.parse_args()


def _outcomes(drafter: str, size: int, options: argparse.Namespace) -> list[Outcome]:
    from emsjax import LLM, SamplingParams
    from emsjax.costs.table import known_costs

    llm = LLM(drafter=drafter, max_batch_size=size, max_model_len=2048)
    outcomes: list[Outcome] = []
    engine = llm.engine
    llm.engine = SteppedEngine(
        llm.target,
        engine.drafter,
        engine.ladder,
        on_step=lambda step: outcomes.extend(_of_step(step)),
        num_slots=size,
        capacity=engine.capacity,
        costs=known_costs(engine, llm.name),
    )
    chats = spread_evenly(read_prompts(options.input), options.prompts)
    llm.chat(chats, SamplingParams(max_tokens=options.max_tokens))
    return outcomes


def _of_step(step: Step) -> list[Outcome]:
    """The outcomes of a step's drafts, without those in which a text ended."""
    draft, verdict = step.draft, step.verdict
    there = (step.live & step.live_after)[:, None] & verdict.tried
    said = np.zeros_like(step.likely) if draft.confidence is None else draft.confidence
    source = np.zeros_like(draft.tokens) if draft.source is None else draft.source
    columns = (x[there].tolist() for x in (step.likely, said, verdict.right, source))
    return [Outcome(*outcome) for outcome in zip(*columns, strict=True)]


def _scores(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Brier score and calibration error of the prediction and of the drafter's own confidence."""
    right = np.asarray([each.right for each in outcomes], np.float64)
    scores: dict[str, Any] = {"tokens": len(outcomes), "accepted": float(right.mean())}
    for name in ("predicted", "said"):
        values = np.asarray([getattr(each, name) for each in outcomes])
        bins = np.minimum((values * BINS).astype(int), BINS - 1)
        rows = [
            [float(values[inside].mean()), float(right[inside].mean()), int(inside.sum())]
            for inside in (bins == b for b in range(BINS))
            if inside.any()
        ]
        scores[name] = {
            "brier": float(((values - right) ** 2).mean()),
            "calibration_error": sum(abs(p - t) * n for p, t, n in rows) / len(outcomes),
            "bins": rows,
        }
    # The score of always predicting the mean.
    scores["brier_of_the_mean"] = float(right.var())
    return scores


def _draw(results: Sequence[dict[str, Any]], file: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(4.6, 4.4), layout="constrained")
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1)
    for result in results:
        predicted, true, counts = np.asarray(result["predicted"]["bins"]).T
        label = f"{result['drafter']}, batch {result['batch_size']}"
        axes.plot(predicted, true, label=label, linewidth=1)
        axes.scatter(predicted, true, s=60 * counts / counts.max())
    axes.set(xlabel="predicted", ylabel="accepted", title="Acceptance of verified draft tokens")
    axes.legend()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def _table(results: Sequence[dict[str, Any]]) -> str:
    rows = [
        [
            f"{r['drafter']}, batch {r['batch_size']}",
            str(r["tokens"]),
            f"{r['accepted']:.3f}",
            *(f"{r[n]['brier']:.4f}" for n in ("predicted", "said")),
            f"{r['brier_of_the_mean']:.4f}",
            *(f"{r[n]['calibration_error']:.3f}" for n in ("predicted", "said")),
        ]
        for r in results
    ]
    header = [
        "drafter",
        "tokens",
        "accepted",
        "Brier score",
        "of the drafter's confidence",
        "of the mean",
        "calibration error",
        "of the drafter's confidence",
    ]
    return table(header, rows)


if __name__ == "__main__":
    main()
