"""Prompt lookup (LLMA, arXiv 2304.04487): copies what followed the same n-gram before.

Text repeats itself: a summary quotes its source, code repeats names. The drafter looks for an
earlier occurrence of the sample's last tokens, in its prompt and output. The tokens after that
occurrence are the draft.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from emsjax.drafters.ngram_index import (
    LONGEST_MATCH,
    NgramIndex,
    clear,
    empty_index,
    enter,
    find,
)
from emsjax.engine.draft import Draft
from emsjax.engine.drafter import WorthDrafting
from emsjax.engine.state import DecodeState
from emsjax.errors import UserError

# How often the token after a match of 1, 2, ... tokens is the next one: counted over 42,000 tokens
# that SmolLM2-135M-Instruct generated for prompts about Wikipedia articles.
RIGHT_AFTER_MATCH: tuple[float, ...] = (
    0.23,
    0.53,
    0.63,
    0.67,
    0.73,
    0.76,
    0.83,
    0.85,
    0.85,
    0.88,
    0.90,
    0.90,
    0.91,
    0.92,
    0.92,
    0.957,
)


@dataclass(frozen=True)
class PromptLookup:
    """Copies from the longest matching n-gram; among several matches, from the latest.

    Attributes:
      draft_length: k, the most tokens copied.
      max_ngram: longest suffix looked for, in tokens.
      min_ngram: shortest suffix that counts as a match, in tokens.
    """

    draft_length: int = 7
    max_ngram: int = 3
    min_ngram: int = 1
    read_bytes = 0
    hidden_size = 0
    hidden_layers = ()
    weights = ()

    def __post_init__(self) -> None:
        if not 1 <= self.min_ngram <= self.max_ngram <= LONGEST_MATCH:
            raise UserError(
                f"min_ngram {self.min_ngram} and max_ngram {self.max_ngram} do not fit; "
                f"choose 1 <= min_ngram <= max_ngram <= {LONGEST_MATCH}"
            )
        if self.draft_length < 1:
            raise UserError(
                f"draft_length {self.draft_length} is less than 1; use the drafter 'none' "
                "to draft nothing"
            )

    @property
    def _orders(self) -> tuple[int, ...]:
        return tuple(range(self.min_ngram, self.max_ngram + 1))

    def init(self, num_slots: int, capacity: int) -> NgramIndex:
        """Returns an empty index with at least two entries per token."""
        size = 1 << (2 * capacity - 1).bit_length()
        return empty_index(num_slots, len(self._orders), size)

    def admit(self, drafter_state: NgramIndex, slot: jax.Array) -> NgramIndex:
        """Returns the index without the slot's previous text."""
        return clear(drafter_state, slot)

    def propose(
        self, state: DecodeState, weights: tuple[()], worth: WorthDrafting
    ) -> tuple[Draft, NgramIndex]:
        """Copies the tokens after the best earlier match; drafts nothing without a match."""
        del weights, worth
        until = jnp.where(state.live, state.lens - 1, 0)
        index = enter(state.drafter, state.tokens, until, self._orders)
        ends, matched = find(index, state.tokens, state.lens, self._orders)
        # A copy that reaches the end of the sample continues with its own beginning, as if it were
        # made token by token. So text with a period shorter than k fills the whole draft.
        period = jnp.maximum(state.lens - 1 - ends, 1)[:, None]
        steps = jnp.arange(self.draft_length, dtype=jnp.int32)[None]
        source = (ends + 1)[:, None] + steps % period
        found = matched > 0
        tokens = jnp.take_along_axis(state.tokens, jnp.where(found[:, None], source, 0), axis=1)
        lens = jnp.where(found, self.draft_length, 0).astype(jnp.int32)
        # If a copied token is right, the match is one token longer for the next one.
        grown = jnp.clip(matched[:, None] - 1 + steps, 0, LONGEST_MATCH - 1)
        return Draft(tokens, lens, jnp.asarray(RIGHT_AFTER_MATCH, jnp.float32)[grown]), index
