"""Drafts as paths of tokens, to compare with those of an oracle."""

from collections.abc import Sequence

import numpy as np
import pytest

from emsjax.engine.draft import ROOT, Draft

# Each guess, as the tokens that lead to it, with the product of the confidences on the way.
Paths = dict[tuple[int, ...], float]


def paths_of(draft: Draft, slot: int) -> Paths:
    paths: list[tuple[int, ...]] = []
    shares: list[float] = []
    for place in range(draft.lens[slot]):
        parent = draft.parents[slot, place]
        assert ROOT <= parent < place, "a parent comes before its guesses"
        before, share = ((), 1.0) if parent == ROOT else (paths[parent], shares[parent])
        paths.append((*before, int(draft.tokens[slot, place])))
        shares.append(share * float(draft.confidence[slot, place]))
    assert len(set(paths)) == len(paths), "guesses with the same parent differ"
    return dict(zip(paths, shares, strict=True))


def equal_paths(found: Paths, expected: Paths) -> bool:
    """Whether a draft holds the likeliest guesses of a beam, with their shares, up to rounding."""
    longest = max(map(len, found))
    # Near the end of a text, paths are shorter.
    best = sorted((s for path, s in expected.items() if len(path) <= longest), reverse=True)
    assert sorted(found.values(), reverse=True) == pytest.approx(best[: len(found)], rel=1e-3)
    return found == pytest.approx({path: expected.get(path, 0) for path in found}, rel=1e-3)


def beam_of(likely: Sequence[np.ndarray], width: int, choices: int) -> Paths:
    """Returns the guesses of a beam whose probabilities [V] do not depend on those before."""
    paths: list[tuple[tuple[int, ...], float]] = [((), 1.0)]
    found: Paths = {}
    for chances in likely:
        best = np.argsort(-chances)[:choices]
        grown = [((*p, int(t)), s * float(chances[t])) for p, s in paths for t in best]
        found |= dict(grown)
        paths = sorted(grown, key=lambda each: -each[1])[:width]
    return found
