"""How likely each draft token is to be accepted: the drafter's word, corrected by experience.

The drafter says how likely each of its tokens is, in its own view. What came of the drafts so far
corrects it, by logistic regression online: an offset in log-odds for each slot (this text is easier
or harder to guess than most) and one for all slots together (the drafter is too sure of itself, or
too timid). Both move with every verified token by how far the prediction was off, and fade, so that
what once failed is tried again in time.
"""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from emsjax.engine.draft import Draft

# Ways of guessing that have an experience of their own, see `Draft.source`.
SOURCES = 2
# Where the drafter says nothing, and what is assumed of its tokens before the first draft.
UNKNOWN = 0.6
# How much of its error a prediction is corrected by, and what is left of it one step later.
SLOT_RATE, SLOT_MEMORY = 0.2, 0.98
SHARED_RATE, SHARED_MEMORY = 0.02, 0.999
# All slots correct what they share: more tokens than these of one step count as so many, or
# hundreds of slots would overshoot.
MANY = 50
# Log-odds beyond which nothing is ever certain.
CERTAIN = 6.0


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Experience:
    """What came of the drafts so far, as offsets in log-odds.

    Attributes:
      slots: float32[B, SOURCES], of the request in each slot.
      shared: float32[SOURCES], of all requests.
      typical: float32[SOURCES], log-odds that a draft token would be accepted, on average of all
        that were drafted, verified or not: those that are verified are better than most.
    """

    slots: jax.Array
    shared: jax.Array
    typical: jax.Array


def no_experience(num_slots: int) -> Experience:
    """Before the first step of B slots."""
    shared = jnp.zeros(SOURCES, jnp.float32)
    return Experience(jnp.zeros((num_slots, SOURCES), jnp.float32), shared, shared + _odds(UNKNOWN))


def forget(experience: Experience, slot: jax.Array) -> Experience:
    """Without what was learnt of the request that was in the slot."""
    return dataclasses.replace(experience, slots=experience.slots.at[slot].set(0.0))


def predict(draft: Draft, experience: Experience) -> jax.Array:
    """How likely each draft token is to be accepted if those before it are, float32[B, k]."""
    said = jnp.float32(UNKNOWN) if draft.confidence is None else draft.confidence
    offset = _of_source(draft, experience.slots) + experience.shared[_source(draft)]
    odds = jnp.broadcast_to(_odds(said), draft.tokens.shape) + offset[:, None]
    return jax.nn.sigmoid(jnp.clip(odds, -CERTAIN, CERTAIN))


def survival_of(likely: jax.Array, lens: jax.Array) -> jax.Array:
    """How likely each draft token and all before it are to be accepted, float32[B, k].

    Args:
      likely: float32[B, k], see `predict`.
      lens: int32[B], tokens of each draft; behind them it is 0.
    """
    position = jnp.arange(likely.shape[1], dtype=jnp.int32)[None]
    return jnp.where(position < lens[:, None], jnp.cumprod(likely, axis=1), 0.0)


def expect(experience: Experience, source: int, draft_length: int) -> jax.Array:
    """The same before anything is drafted, from experience alone, float32[B, k]."""
    odds = experience.typical[source] + experience.slots[:, source]
    return jnp.broadcast_to(jax.nn.sigmoid(odds)[:, None], (odds.shape[0], draft_length))


def learn(
    experience: Experience,
    draft: Draft,
    likely: jax.Array,
    draft_lens: jax.Array,
    accepted: jax.Array,
) -> Experience:
    """What is known after a step.

    Args:
      experience: before it.
      draft: the guesses.
      likely: float32[B, k], see `predict`.
      draft_lens: int32[B], how many of them were verified.
      accepted: int32[B], how many of those were right.
    """
    position = jnp.arange(likely.shape[1], dtype=jnp.int32)[None]
    # Behind the first wrong token nothing was tried.
    tried = position < jnp.minimum(accepted + 1, draft_lens)[:, None]
    right = (position < accepted[:, None]).astype(jnp.float32)
    error = jnp.where(tried, right - likely, 0.0).sum(axis=1)
    mine = jax.nn.one_hot(_source(draft), SOURCES)
    rate = _shared_rate(tried.astype(jnp.float32).sum(axis=1) @ mine)
    return Experience(
        slots=SLOT_MEMORY * experience.slots + SLOT_RATE * error[:, None] * mine,
        shared=SHARED_MEMORY * experience.shared + rate * (error @ mine),
        typical=_learn_typical(experience, draft if draft.costly is None else draft.costly),
    )


def _learn_typical(experience: Experience, draft: Draft) -> jax.Array:
    """`Experience.typical` after one more draft."""
    likely = predict(draft, experience)
    mine = jax.nn.one_hot(_source(draft), SOURCES)
    # A token counts as much as it is likely to be reached.
    reached = jnp.cumprod(likely, axis=1) / jnp.maximum(likely, 1e-6)
    position = jnp.arange(likely.shape[1], dtype=jnp.int32)[None]
    reached = jnp.where(position < draft.lens[:, None], reached, 0.0)
    odds = experience.typical[_source(draft)] + _of_source(draft, experience.slots)
    surprise = (reached * (likely - jax.nn.sigmoid(odds)[:, None])).sum(axis=1)
    typical = _faded_to_unknown(experience.typical)
    typical += _shared_rate(reached.sum(axis=1) @ mine) * (surprise @ mine)
    return jnp.clip(typical, -CERTAIN, CERTAIN)


def _shared_rate(count: jax.Array) -> jax.Array:
    """By which so many tokens of each source move what all slots share, float32[SOURCES]."""
    return SHARED_RATE * MANY / jnp.maximum(count, MANY)


def _faded_to_unknown(typical: jax.Array) -> jax.Array:
    """So that drafting that once did not pay is tried again in time."""
    return SHARED_MEMORY * typical + (1 - SHARED_MEMORY) * _odds(UNKNOWN)


def _source(draft: Draft) -> jax.Array:
    return jnp.zeros_like(draft.lens) if draft.source is None else draft.source


def _of_source(draft: Draft, by_source: jax.Array) -> jax.Array:
    return jnp.take_along_axis(by_source, _source(draft)[:, None], axis=1)[:, 0]


def _odds(probability: jax.Array | float) -> jax.Array:
    p = jnp.clip(jnp.asarray(probability, jnp.float32), 1e-4, 1 - 1e-4)
    return jnp.log(p) - jnp.log1p(-p)
