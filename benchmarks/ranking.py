"""Is a tree of a few guesses better if they are chosen by calibrated probabilities? Counts only.

python -m benchmarks.drafts --input spec_bench.jsonl --output drafts.npz
python -m benchmarks.ranking --drafts drafts.npz

A draft chooses the guesses of a tree by the products of its own probabilities. Here their log-odds
get an offset for each group of guesses, which is fitted to the other half of the texts.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import describe, machine, write_json
from benchmarks.drafts import Recorded, read
from emsjax.cli.markdown import table

SIZES = (3, 7, 15, 23)
NAME = "tree"
# Guesses of a group with fewer outcomes than this keep most of their own probability.
PRIOR = 5
STEPS = 8

# What distinguishes guesses, from their rank among siblings and their depth.
GROUPS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "first choice or not": lambda rank, depth: np.minimum(rank, 1),
    "rank and depth": lambda rank, depth: 4 * np.minimum(rank, 2) + np.minimum(depth, 3),
}


def main() -> None:
    """Replays all texts, prints a Markdown table and writes JSON."""
    options = _options()
    recorded = read(options.drafts)
    results = [{"ranked_by": name, **_tokens(recorded, name)} for name in ("said", *GROUPS)]
    facts = {"benchmark": "ranking", "machine": machine(), "texts": len(recorded.texts)}
    write_json(options.output, facts | {"results": results})
    rows = [[r["ranked_by"], *(f"{r[str(size)]:.3f}" for size in SIZES)] for r in results]
    head = ["tokens a step, tree of", *map(str, SIZES)]
    print(table(head, rows), describe(facts["machine"]), sep="\n\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--drafts", type=Path, required=True, help="made by benchmarks.drafts")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/ranking.json"))
    return parser.parse_args()


def _tokens(recorded: Recorded, ranked_by: str) -> dict[str, Any]:
    """Returns the tokens of a step by the number of guesses in a tree."""
    said = recorded.drafts[NAME]["confidence"].astype(np.float64)
    odds = np.log(np.clip(said, 1e-4, 1 - 1e-4)) - np.log1p(-np.clip(said, 1e-4, 1 - 1e-4))
    if ranked_by != "said":
        groups = GROUPS[ranked_by](recorded.ranks(NAME), recorded.depths(NAME))
        even = np.arange(len(said))[:, None, None] % 2 == 0
        fits = [_offsets(recorded, odds, groups, half) for half in (even, ~even)]
        odds = odds + np.where(even, fits[1][groups], fits[0][groups])
    products = _products(1 / (1 + np.exp(-odds)), recorded.drafts[NAME]["parents"].astype(int))
    return {str(size): round(_walk(recorded, products, size), 4) for size in SIZES}


def _known(recorded: Recorded) -> np.ndarray:
    """Which guesses are for a place that the text has, bool[N, P, k]."""
    depth = recorded.depths(NAME)
    place = np.arange(depth.shape[1])[None, :, None]
    left = (recorded.lens - recorded.prompt_lens)[:, None, None]
    return (place >= 1) & (place + depth < left)


def _offsets(
    recorded: Recorded, odds: np.ndarray, groups: np.ndarray, texts: np.ndarray
) -> np.ndarray:
    """Fits an offset in log-odds for each group by Newton's method, to some texts."""
    seen = recorded.tried(NAME) & _known(recorded) & texts
    group, before, right = groups[seen], odds[seen], recorded.right(NAME)[seen]
    offsets = np.zeros(groups.max() + 1)
    for _ in range(STEPS):
        likely = 1 / (1 + np.exp(-(before + offsets[group])))
        error = np.bincount(group, right - likely, len(offsets))
        offsets += error / (np.bincount(group, likely * (1 - likely), len(offsets)) + PRIOR)
    return offsets


def _products(factors: np.ndarray, parents: np.ndarray) -> np.ndarray:
    """Returns the products along the guesses' paths, [N, P, k]."""
    products = factors.copy()
    for guess in range(products.shape[2]):
        parent = parents[..., guess, None]
        above = np.take_along_axis(products, np.maximum(parent, 0), axis=2)
        products[..., guess] *= np.where(parent < 0, 1.0, above)[..., 0]
    return products


def _walk(recorded: Recorded, products: np.ndarray, size: int) -> float:
    """Decodes all texts with trees of the guesses with the largest products."""
    products = np.where(recorded.there(NAME), products, 0.0)
    order = np.argsort(-products, axis=2, kind="stable")[..., :size]
    chosen = np.zeros(products.shape, bool)
    np.put_along_axis(chosen, order, True, axis=2)
    accepted = (chosen & recorded.right(NAME) & _known(recorded)).sum(axis=2)
    tokens = steps = 0
    for text, left in enumerate(recorded.lens - recorded.prompt_lens):
        place = 1
        while place < left:
            emitted = min(int(accepted[text, place]) + 1, left - place)
            place, tokens, steps = place + emitted, tokens + emitted, steps + 1
    return tokens / steps


if __name__ == "__main__":
    main()
