"""Prompt lookup (LLMA, arXiv 2304.04487): copies what followed the same tokens before.

Text repeats itself: a summary quotes its source, code repeats names. The drafter looks for earlier
occurrences of the sample's last tokens, in its prompt and output. What followed them is the draft:
a chain after the best occurrence, or a tree of what followed several.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from emsjax.drafters.matches import LONGEST_MATCH, Matches, find
from emsjax.engine.draft import ROOT, Draft
from emsjax.engine.drafter import FOUND_SOURCE, OTHER_FOUND_SOURCE, Stateless, WorthDrafting
from emsjax.engine.state import DecodeState
from emsjax.engine.tree import best_of
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
# The most occurrences whose continuations are compared.
MOST_MATCHES = 8


@dataclass(frozen=True)
class PromptLookup(Stateless):
    """Copies what followed the longest matches; among equally long ones, the latest come first.

    Attributes:
      draft_length: k, the most tokens copied.
      max_ngram: matches of this many tokens or more are equally good.
      min_ngram: shortest suffix that counts as a match, in tokens.
      matches: how many matches are continued. More than one make a tree.
    """

    draft_length: int = 7
    max_ngram: int = LONGEST_MATCH
    min_ngram: int = 1
    matches: int = 1

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

    def propose(self, state: DecodeState, weights: Any, worth: WorthDrafting) -> tuple[Draft, Any]:
        """Copies the tokens after the best earlier matches; drafts nothing without a match."""
        del weights, worth
        lens = jnp.where(state.live, state.lens, 0)
        matches = find(state.tokens, lens, self.matches, self.max_ngram, self.min_ngram)
        copies = _copies(state.tokens, lens, matches, self.draft_length)
        grown = matches.lens[:, :, None] + _steps(self.draft_length)
        # If a copied token is right, the match is one token longer for the next one.
        right = jnp.asarray(RIGHT_AFTER_MATCH, jnp.float32)[jnp.clip(grown, 1, LONGEST_MATCH) - 1]
        if self.matches == 1:
            there = jnp.where(matches.lens[:, 0] > 0, self.draft_length, 0).astype(jnp.int32)
            return Draft(copies[:, 0], there, right[:, 0]), ()
        return _tree(copies, matches.lens > 0, right, self.draft_length), ()


def _copies(tokens: jax.Array, lens: jax.Array, matches: Matches, length: int) -> jax.Array:
    """Returns the tokens after each match, int32[B, M, k].

    A copy that reaches the end of the sample continues with its own beginning, as if it were made
    token by token. So text with a period shorter than k fills the whole draft.
    """
    period = jnp.maximum(lens[:, None] - 1 - matches.ends, 1)[:, :, None]
    sources = (matches.ends + 1)[:, :, None] + _steps(length) % period
    found = jnp.where((matches.lens > 0)[:, :, None], sources, 0)
    copied = jnp.take_along_axis(tokens, found.reshape(found.shape[0], -1), axis=1)
    return copied.reshape(found.shape)


def _tree(copies: jax.Array, there: jax.Array, right: jax.Array, length: int) -> Draft:
    """Returns the likeliest tokens of all copies as a tree, in which equal beginnings are one path.

    Args:
      copies: int32[B, M, k], best first.
      there: bool[B, M], which of them exist.
      right: float32[B, M, k], how often a token after a match like this is right.
      length: k, the most guesses.
    """
    num_slots, count, depth = copies.shape
    equal = (copies[:, :, None] == copies[:, None]) & there[:, None, :, None]
    together = jnp.cumprod(equal, axis=3, dtype=jnp.int32) > 0  # [B, M, M, k]
    # Of the copies that share a path, the first one stands for it.
    speaker = jnp.argmax(together, axis=2).astype(jnp.int32)
    numbers = jnp.arange(count, dtype=jnp.int32)[None, :, None]
    speaks = (speaker == numbers) & there[:, :, None]
    confidence = _shares(together, jnp.where(there[:, :, None], right, 0.0))
    survival = jnp.where(speaks, jnp.cumprod(confidence, axis=2), 0.0)
    above = speaker[:, :, :-1] * depth + _steps(depth - 1)
    parents = jnp.pad(above, ((0, 0), (0, 0), (1, 0)), constant_values=ROOT)
    source = jnp.where(numbers == 0, FOUND_SOURCE, OTHER_FOUND_SOURCE)
    flat = (
        jnp.broadcast_to(x, copies.shape).reshape(num_slots, -1)
        for x in (copies, confidence, source, parents, survival)
    )
    tokens, confidence, source, parents, survival = flat
    lens = jnp.zeros(num_slots, jnp.int32)
    return best_of(Draft(tokens, lens, confidence, source, parents), survival, length)


def _steps(length: int) -> jax.Array:
    return jnp.arange(length, dtype=jnp.int32)[None, None]


def _shares(together: jax.Array, right: jax.Array) -> jax.Array:
    """Returns how likely each copied token is right if those before it are, float32[B, M, k].

    Each match votes for what followed it, with its odds of being right. One more vote is for
    something else, so that a single match is as likely as it says, and several that agree are
    likelier.

    Args:
      together: bool[B, M, M, k], whether two copies are equal up to a token.
      right: float32[B, M, k], how often a token after a match like this is right; 0 for no match.
    """
    odds = (right / (1 - right))[:, None]
    votes = jnp.where(together, odds, 0.0).sum(axis=2)
    parted = jnp.pad(together[..., :-1], ((0, 0), (0, 0), (0, 0), (1, 0)), constant_values=True)
    return votes / (1 + jnp.where(parted, odds, 0.0).sum(axis=2))
