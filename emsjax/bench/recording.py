"""Records acceptance in real runs, to simulate it with models that are too large to load."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from emsjax.bench.simulated import Acceptance
from emsjax.bench.stepped import Step


class _Verified(NamedTuple):
    """A verified draft: its length, its accepted tokens, and the drafter's mean confidence."""

    drafted: int
    accepted: int
    confidence: float


class Recorder:
    """Collects the outcome of every draft from an engine's steps.

    Attributes:
      samples: the acceptance of each finished text, arrays of shape [P].
    """

    def __init__(self) -> None:
        self._drafts: dict[int, list[_Verified]] = defaultdict(list)
        self.samples: list[Acceptance] = []

    def see(self, step: Step) -> None:
        """Records a step of chains; pass this method to `SteppedEngine` as `on_step`."""
        for slot in np.flatnonzero(step.live & (step.emitted > 0)).tolist():
            drafted = int(step.plan.draft_lens[slot])
            given = step.draft.confidence
            confidence = (
                float(given[slot, :drafted].mean()) if given is not None and drafted else 0.0
            )
            accepted = int(step.verdict.accepted[slot])
            self._drafts[slot].append(_Verified(drafted, accepted, confidence))
            if not step.live_after[slot]:
                # The text ended within the last draft, so its accepted length is unknown.
                self.samples.append(_by_place(self._drafts.pop(slot)[:-1]))


def _by_place(drafts: Sequence[_Verified]) -> Acceptance:
    """Acceptance with one entry for every place of the text, arrays of shape [P].

    No draft started at a place inside an accepted draft. Its entry is the rest of that draft.
    """
    rows: list[tuple[int, int, float]] = []
    for draft in drafts:
        for done in range(draft.accepted + 1):
            rest = draft.drafted - done, draft.accepted - done
            rows.append((*rest, draft.confidence))
    drafted, accepted, confidence = np.asarray(rows or [(0, 0, 0.0)], np.float64).T
    return Acceptance(drafted.astype(np.int32), accepted.astype(np.int32), confidence)
