"""Compares the predicted acceptance of draft tokens with the real one.

python -m benchmarks.drafts --input spec_bench.jsonl --output drafts.npz
python -m benchmarks.calibration --drafts drafts.npz --output results.json

Every text is decoded again from its recorded drafts, all of which are verified, and the engine's
predictions learn from the outcome as they do in a run.
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.common import describe, machine, write_json
from benchmarks.drafts import Recorded, read
from emsjax.cli.markdown import table
from emsjax.engine.acceptance import Experience, learn, no_experience, predict
from emsjax.engine.draft import Draft

# The most guesses of a slot that are verified, by way of drafting.
LENGTHS = {"chain": 7, "tree": 15, "lookup": 7}
# Ranks among siblings and depths from here on are counted together.
MOST_RANK, MOST_DEPTH = 2, 3


class Outcomes(NamedTuple):
    """Verified draft tokens, each after all tokens before it on its path were accepted, [tokens].

    Attributes:
      predicted: the predicted probability that it is accepted.
      said: the drafter's own confidence.
      right: whether it was accepted.
      rank: 0 for the likeliest of the guesses that follow the same token, up to `MOST_RANK`.
      depth: 0 for the first token of a draft, up to `MOST_DEPTH`.
    """

    predicted: np.ndarray
    said: np.ndarray
    right: np.ndarray
    rank: np.ndarray
    depth: np.ndarray


def main() -> None:
    """Scores all ways of drafting, prints a Markdown table and writes JSON."""
    options = _options()
    recorded = read(options.drafts)
    results = [
        {"drafts": name, **scores(outcomes_of(recorded, name, LENGTHS[name]))}
        for name in recorded.drafts
    ]
    content = {"benchmark": "calibration", "machine": machine(), "texts": len(recorded.texts)}
    write_json(options.output, content | {"results": results})
    print(_table(results), describe(content["machine"]), sep="\n\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--drafts", type=Path, required=True, help="made by benchmarks.drafts")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/calibration.json"))
    return parser.parse_args()


@jax.jit
def _step(
    experience: Experience, draft: Draft, tried: jax.Array, right: jax.Array
) -> tuple[jax.Array, Experience]:
    likely = predict(draft, experience)
    return likely, learn(experience, draft, likely, tried, right)


def outcomes_of(recorded: Recorded, name: str, length: int) -> Outcomes:
    """Decodes all texts at once, each in a slot of its own, and verifies whole drafts."""
    drafts, samples = recorded.drafts[name], np.arange(len(recorded.texts))
    right = recorded.right(name)[..., :length]
    tried, depth = recorded.tried(name)[..., :length], recorded.depths(name)[..., :length]
    rank = recorded.ranks(name)[..., :length]
    left = recorded.lens - recorded.prompt_lens
    experience, place = no_experience(len(samples)), np.ones(len(samples), int)
    found = []
    while (place < left).any():
        here = samples, np.minimum(place, drafts["lens"].shape[1] - 1)
        # The tokens after a text's end are unknown.
        known = (place < left)[:, None] & (place[:, None] + depth[here] < left[:, None])
        draft = Draft(
            drafts["tokens"][here][:, :length],
            np.where(place < left, np.minimum(drafts["lens"][here], length), 0).astype(np.int32),
            drafts["confidence"][here][:, :length],
            drafts["source"][here][:, :length].astype(np.int32),
            drafts["parents"][here][:, :length].astype(np.int32),
        )
        seen, hit = tried[here] & known, right[here] & known
        likely, experience = _step(experience, draft, seen, hit)
        columns = (np.asarray(likely), draft.confidence, hit, rank[here], depth[here])
        found.append([x[seen] for x in columns])
        place = place + 1 + np.where(hit, depth[here] + 1, 0).max(axis=1)
    columns = [np.concatenate(column) for column in zip(*found, strict=True)]
    columns[3:] = np.minimum(columns[3], MOST_RANK), np.minimum(columns[4], MOST_DEPTH)
    return Outcomes(*columns)


def scores(outcomes: Outcomes) -> dict[str, Any]:
    """Scores of the prediction, of the drafter's confidence and of the mean; shares by place."""
    right = outcomes.right.astype(np.float64)
    means = np.full(right.shape, right.mean())
    columns = {"predicted": outcomes.predicted, "said": outcomes.said, "mean": means}
    by_place = []
    for rank in range(MOST_RANK + 1):
        for depth in range(MOST_DEPTH + 1):
            here = (outcomes.rank == rank) & (outcomes.depth == depth)
            if here.any():
                shares = (float(x[here].mean()) for x in (outcomes.predicted, outcomes.said, right))
                by_place.append([rank, depth, int(here.sum()), *shares])
    return {
        "tokens": len(right),
        "accepted": float(right.mean()),
        **{name: _score(values, right) for name, values in columns.items()},
        "rank, depth, tokens, predicted, said, true": by_place,
    }


def _score(given: np.ndarray, right: np.ndarray) -> dict[str, float]:
    p = np.clip(given.astype(np.float64), 1e-4, 1 - 1e-4)
    loss = -np.where(right > 0, np.log(p), np.log1p(-p))
    return {"brier": float(((p - right) ** 2).mean()), "log_loss": float(loss.mean())}


def _table(results: list[dict[str, Any]]) -> str:
    kinds = ("predicted", "said", "mean")
    rows = [
        [
            r["drafts"],
            str(r["tokens"]),
            f"{r['accepted']:.3f}",
            *(f"{r[kind]['brier']:.4f}, {r[kind]['log_loss']:.4f}" for kind in kinds),
        ]
        for r in results
    ]
    head = ["Brier score, log-loss", "tokens", "accepted", "predicted", "said", "the mean"]
    return table(head, rows)


if __name__ == "__main__":
    main()
