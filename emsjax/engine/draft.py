"""What a drafter gives: guesses for every slot."""

from typing import NamedTuple

import jax


class Draft(NamedTuple):
    """Guesses for the tokens that follow each slot's known ones.

    Attributes:
      tokens: int32[B, k]; entries from `lens` on are not looked at.
      lens: int32[B], guesses of each slot, 0 to k.
      confidence: float32[B, k], how likely each guess is right if those before it are, as the
        drafter sees it; None: it cannot tell. See `acceptance` for what becomes of it.
      source: int32[B], which of its ways of guessing the drafter took, each with an experience of
        its own; None where there is one only.
      costly: what took time to draft, where not all of it is in this draft; else None.
    """

    tokens: jax.Array
    lens: jax.Array
    confidence: jax.Array | None = None
    source: jax.Array | None = None
    costly: "Draft | None" = None
