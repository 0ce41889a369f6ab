"""Drafting one token of every slot in each pass: what the loop over the passes carries."""

from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp

from emsjax.sampling.guess import Guesses


class Drafting(NamedTuple):
    """The drafts so far.

    Attributes:
      done: int32[], tokens drafted so far.
      states: [B, D], the drafter's states from which the next tokens are guessed; None if it has
        none.
      cache: the K/V that its layers read and extend.
      guesses: int32[B, k].
      confidence: float32[B, k].
    """

    done: jax.Array
    states: jax.Array | None
    cache: Any
    guesses: jax.Array
    confidence: jax.Array

    @classmethod
    def begin(
        cls, num_slots: int, draft_length: int, cache: Any, states: jax.Array | None = None
    ) -> Self:
        """Returns empty drafts of B slots, with room for k tokens each."""
        shape = (num_slots, draft_length)
        guesses, confidence = jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32)
        return cls(jnp.zeros((), jnp.int32), states, cache, guesses, confidence)

    def add(self, found: Guesses) -> Self:
        """Returns the drafts with the first of each slot's guesses added."""
        return self._replace(
            done=self.done + 1,
            guesses=self.guesses.at[:, self.done].set(found.tokens[:, 0]),
            confidence=self.confidence.at[:, self.done].set(found.confidence[:, 0]),
        )
