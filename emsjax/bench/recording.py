"""Acceptance recorded from real runs, for simulating it with models that are too large to have."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from emsjax.bench.simulated import Acceptance
from emsjax.bench.stepped import Step


class _Verified(NamedTuple):
    """One draft: how long, how much of it was right, how sure the drafter was."""

    drafted: int
    accepted: int
    confidence: float


class Recorder:
    """Watches an engine's steps and keeps what became of each draft."""

    def __init__(self) -> None:
        self._drafts: dict[int, list[_Verified]] = defaultdict(list)
        self.samples: list[Acceptance] = []

    def see(self, step: Step) -> None:
        """Takes note of a step; for `SteppedEngine`."""
        for slot in np.flatnonzero(step.live & (step.emitted > 0)).tolist():
            drafted = int(step.plan.draft_lens[slot])
            said = step.draft.confidence
            sure = float(said[slot, :drafted].mean()) if said is not None and drafted else 0.0
            accepted = min(int(step.accepted[slot]), drafted)
            self._drafts[slot].append(_Verified(drafted, accepted, sure))
            if not step.live_after[slot]:
                # How far the last draft was right is not known: the text ended within it.
                self.samples.append(_by_place(self._drafts.pop(slot)[:-1]))


def _by_place(drafts: Sequence[_Verified]) -> Acceptance:
    """A row [P] for each field: of every place, also those that a draft jumped over.

    Inside what was accepted, what would have been drafted is taken to be what was left.
    """
    rows: list[tuple[int, int, float]] = []
    for draft in drafts:
        for done in range(draft.accepted + 1):
            left = draft.drafted - done, draft.accepted - done
            rows.append((*left, draft.confidence))
    drafted, accepted, confidence = np.asarray(rows or [(0, 0, 0.0)], np.float64).T
    return Acceptance(drafted.astype(np.int32), accepted.astype(np.int32), confidence)
