"""Prompt lookup (LLMA, arXiv 2304.04487): copy what followed the same n-gram before.

Text repeats itself: a summary quotes its source, code repeats names. The last tokens of the
sample are looked for earlier in its own prompt and output, and what came after is the draft.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from emsjax.drafters.base import Draft, Stateless
from emsjax.errors import UserError
from emsjax.state import DecodeState


@dataclass(frozen=True)
class PromptLookup(Stateless):
    """Longest n-gram first; of several places the latest.

    The longer the match, the more of what is copied is right: behind the longest n-gram
    `draft_length` tokens are copied, behind a shorter one `short_draft`.

    Attributes:
      draft_length: k, tokens copied at most.
      max_ngram: longest suffix looked for, in tokens.
      min_ngram: shortest suffix that counts as a match. Copies behind a single token are mostly
        wrong, and a step that verifies a draft costs more than one that does not.
      short_draft: tokens copied at most where the match is shorter than `max_ngram`.
    """

    draft_length: int = 7
    max_ngram: int = 3
    min_ngram: int = 2
    short_draft: int = 3

    def __post_init__(self) -> None:
        if not 1 <= self.min_ngram <= self.max_ngram:
            raise UserError(
                f"min_ngram {self.min_ngram} and max_ngram {self.max_ngram} do not fit: "
                "they must satisfy 1 <= min_ngram <= max_ngram"
            )
        if self.draft_length < 1:
            raise UserError(
                f"draft_length {self.draft_length} is less than 1; use the drafter 'none' "
                "to draft nothing"
            )

    def propose(self, state: DecodeState) -> tuple[Draft, Any]:
        """Copies the tokens behind the best earlier match; drafts nothing on a miss."""
        ends, matched = self._best_match(state.tokens, state.lens)
        # A copy that reaches the end of the sample goes on with its own beginning, as if token
        # after token were copied: a period shorter than k fills the draft.
        period = jnp.maximum(state.lens - 1 - ends, 1)[:, None]
        steps = jnp.arange(self.draft_length, dtype=jnp.int32)[None]
        source = (ends + 1)[:, None] + steps % period
        found = (matched > 0)[:, None]
        tokens = jnp.take_along_axis(state.tokens, jnp.where(found, source, 0), axis=1)
        return Draft(tokens, self._lengths()[matched]), ()

    def _lengths(self) -> jax.Array:
        """How much to copy behind a match of 0 to `max_ngram` tokens, int32[max_ngram + 1]."""
        short = min(self.short_draft, self.draft_length)
        lengths = [0, *[short] * (self.max_ngram - 1), self.draft_length]
        return jnp.asarray(lengths, jnp.int32)

    def _best_match(self, tokens: jax.Array, lens: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Where the best match ends and how long it is (0: none), int32[B] each."""
        capacity = tokens.shape[1]
        ends = jnp.arange(capacity, dtype=jnp.int32)[None]
        matched = jnp.zeros(tokens.shape, jnp.int32)
        matching = ends < (lens - 1)[:, None]
        for back in range(self.max_ngram):
            last = jnp.take_along_axis(tokens, jnp.maximum(lens - 1 - back, 0)[:, None], axis=1)
            earlier = jnp.roll(tokens, back, axis=1)
            matching &= (earlier == last) & (ends >= back)
            matched += matching.astype(jnp.int32)
        matched = jnp.where(matched >= self.min_ngram, matched, 0)
        score = matched * capacity + ends
        best = jnp.argmax(score, axis=1).astype(jnp.int32)
        return best, jnp.max(score, axis=1) // capacity
