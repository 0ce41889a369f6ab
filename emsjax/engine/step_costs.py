"""The cost of a step, and by how much verifying drafts must beat plain decoding.

Imports jax only for types, so that forecasts need not wait for it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from emsjax.engine.ladder import Rung, for_drafts
from emsjax.engine.sizes import Exchange

if TYPE_CHECKING:
    import jax

# The factor by which verifying must beat plain decoding. The best of several estimates is more
# often too high than too low: promised rates were 8 to 18% above the rates achieved (SmolLM2, 8 and
# 16 slots, summaries, on a CPU).
CAUTION = 1.15


class Passes(NamedTuple):
    """The passes of a model in which drafts are made, of all slots at once.

    Attributes:
      depth: how many tokens ahead of the text a draft reaches, at most.
      guesses: how many of these places one pass guesses.
      rows: the rows of a slot in a pass.
      tokens: the tokens of a slot's text of which a pass reads K/V in all the target's layers.
      exchanges: what the devices that share the target exchange in a pass.
      spared: how many guesses of a draft need no rows, as what they are made of is there already.
      share: the share of a pass's cost that its rows cause. The rest is for guessing.
      observing: the bytes of weights with which the rows of every step are multiplied, besides the
        target's, whether or not anything is drafted.
    """

    depth: int
    guesses: int = 1
    rows: int = 1
    tokens: int = 0
    exchanges: tuple[Exchange, ...] = ()
    spared: int = 0
    share: float = 1.0
    observing: int = 0

    def needed(self, length: Any) -> Any:
        """Returns how many passes guess `length` places, a number or array of at most `depth`."""
        return -(-length // self.guesses)

    def price(self, length: int) -> float:
        """Returns what the passes for `length` places cost, in passes with rows."""
        return float(self.needed(length)) - self.share * min(length, self.spared)


class StepCosts(NamedTuple):
    """The cost of a step, in seconds.

    Attributes:
      rungs: float32[R], the cost on each rung of the ladder if the cache were empty.
      cached: float32[R], the additional cost of each cached position that is read, in whole blocks.
      draft: float32[], the cost of a pass that drafts for every slot; 0 if drafting costs next to
        nothing.
    """

    rungs: "jax.Array | np.ndarray"
    cached: "jax.Array | np.ndarray"
    draft: "jax.Array | np.floating"


def without_prompts(costs: StepCosts, ladder: Sequence[Rung], draft_length: int) -> StepCosts:
    """Returns the costs with infinity for rungs that only prompts need, as measured costs have."""
    rungs = np.where(for_drafts(ladder, draft_length), np.asarray(costs.rungs), np.float32(np.inf))
    return costs._replace(rungs=rungs)
