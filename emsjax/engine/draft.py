"""The output of a drafter: guesses for every slot."""

from typing import Any, NamedTuple

import jax

# The parent of a guess that follows the slot's newest known token.
ROOT = -1


class Draft(NamedTuple):
    """Guesses for the tokens after each slot's known text: a chain for each slot, or a tree.

    Attributes:
      tokens: int32[B, k]; entries from `lens` on are ignored.
      lens: int32[B], number of guesses for each slot, 0 to k.
      confidence: float32[B, k], the drafter's probability that each guess is right if those before
        it are; None if the drafter cannot tell. `acceptance` corrects it by experience.
      source: int32[B, k], which of its ways of guessing the drafter used for each guess; None if it
        has only one. Each way has separate experience.
      parents: int32[B, k], the index of the guess that each guess follows, smaller than its own, or
        `ROOT`; None if each guess follows the one before it. Guesses with the same parent are
        different tokens.
      costly: the guesses that took time to draft, if this draft does not hold all of them; else
        None. `Combined` drops guesses in favour of better ones, and learns from them all the same.
      cache: the target's cache, if the drafter wrote K/V of its own into it; else None. It may only
        write past `DecodeState.kv_lens`, where the target writes again before it reads.
    """

    tokens: jax.Array
    lens: jax.Array
    confidence: jax.Array | None = None
    source: jax.Array | None = None
    parents: jax.Array | None = None
    costly: "Draft | None" = None
    cache: Any = None
