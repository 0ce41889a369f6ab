"""The output of a drafter: guesses for every slot."""

from typing import Any, NamedTuple

import jax


class Draft(NamedTuple):
    """Guesses for the tokens after each slot's known text.

    Attributes:
      tokens: int32[B, k]; entries from `lens` on are ignored.
      lens: int32[B], number of guesses for each slot, 0 to k.
      confidence: float32[B, k], the drafter's probability that each guess is right if those before
        it are; None if the drafter cannot tell. `acceptance` corrects it by experience.
      source: int32[B], which of its ways of guessing the drafter used; None if it has only one.
        Each way has separate experience.
      costly: the guesses that took time to draft, if this draft does not hold all of them; else
        None. `Combined` drops guesses in favour of better ones, and learns from them all the same.
      cache: the target's cache, if the drafter wrote K/V of its own into it; else None. It may only
        write past `DecodeState.kv_lens`, where the target writes again before it reads.
    """

    tokens: jax.Array
    lens: jax.Array
    confidence: jax.Array | None = None
    source: jax.Array | None = None
    costly: "Draft | None" = None
    cache: Any = None
