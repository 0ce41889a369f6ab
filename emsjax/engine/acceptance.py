"""How likely each draft token is to be accepted: the drafter's confidence, corrected by experience.

The drafter reports how likely each of its tokens is to be right. The outcome of earlier drafts
corrects that, by online logistic regression with two offsets in log-odds. One belongs to each slot,
because its text may be easier or harder to guess than most. The other is shared by all slots,
because the drafter may be too sure of itself, or not sure enough. With every verified token, both
offsets move by the error of the prediction. They also fade, so that a drafter that once failed gets
another try in time.
"""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from emsjax.engine.draft import Draft

# The number of ways of guessing that have separate experience, see `Draft.source`.
SOURCES = 2
# The acceptance probability assumed when the drafter reports none, and before the first draft.
UNKNOWN = 0.6
# RATE: how far a prediction is corrected by its error. MEMORY: the share of an offset that remains
# one step later.
SLOT_RATE, SLOT_MEMORY = 0.2, 0.98
SHARED_RATE, SHARED_MEMORY = 0.02, 0.999
# Every slot moves the shared offset. Above this many tokens in one step, the tokens together move
# it only as far as this many would, or hundreds of slots would overshoot.
MANY = 50
# Predictions stay within this many log-odds of even, so that none is ever certain.
CERTAIN = 6.0


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Experience:
    """The outcome of all drafts so far, as offsets in log-odds.

    Attributes:
      slots: float32[B, SOURCES], for the request in each slot.
      shared: float32[SOURCES], for all requests.
      typical: float32[SOURCES], the log-odds that a draft token is accepted, averaged over all that
        were drafted, verified or not. The verified ones alone are better than average.
    """

    slots: jax.Array
    shared: jax.Array
    typical: jax.Array


def no_experience(num_slots: int) -> Experience:
    """Returns the experience before the first step of B slots."""
    shared = jnp.zeros(SOURCES, jnp.float32)
    return Experience(jnp.zeros((num_slots, SOURCES), jnp.float32), shared, shared + _odds(UNKNOWN))


def forget(experience: Experience, slot: jax.Array) -> Experience:
    """Returns the experience without what it holds about the previous request in the slot."""
    return dataclasses.replace(experience, slots=experience.slots.at[slot].set(0.0))


def predict(draft: Draft, experience: Experience) -> jax.Array:
    """Returns the probability that each draft token is accepted if those before it are.

    The result is float32[B, k].
    """
    said = jnp.float32(UNKNOWN) if draft.confidence is None else draft.confidence
    offset = _of_source(draft, experience.slots) + experience.shared[_source(draft)]
    odds = jnp.broadcast_to(_odds(said), draft.tokens.shape) + offset[:, None]
    # A drafter that computes NaN guesses at random. Its NaN must not enter the shared experience.
    odds = jnp.where(jnp.isnan(odds), -CERTAIN, odds)
    return jax.nn.sigmoid(jnp.clip(odds, -CERTAIN, CERTAIN))


def survival_of(likely: jax.Array, lens: jax.Array) -> jax.Array:
    """Returns the probability that each draft token and all before it are accepted, float32[B, k].

    Args:
      likely: float32[B, k], see `predict`.
      lens: int32[B], the length of each draft; the result is 0 from there on.
    """
    position = jnp.arange(likely.shape[1], dtype=jnp.int32)[None]
    return jnp.where(position < lens[:, None], jnp.cumprod(likely, axis=1), 0.0)


def expect(experience: Experience, source: int, draft_length: int) -> jax.Array:
    """Predicts as `predict` does, but before anything is drafted, from experience alone.

    The result is float32[B, k], the same for all draft tokens of a slot.
    """
    odds = experience.typical[source] + experience.slots[:, source]
    return jnp.broadcast_to(jax.nn.sigmoid(odds)[:, None], (odds.shape[0], draft_length))


def learn(
    experience: Experience,
    draft: Draft,
    likely: jax.Array,
    draft_lens: jax.Array,
    accepted: jax.Array,
) -> Experience:
    """Returns the experience after a step.

    Args:
      experience: before the step.
      draft: the guesses.
      likely: float32[B, k], see `predict`.
      draft_lens: int32[B], how many draft tokens were verified.
      accepted: int32[B], how many of these were accepted.
    """
    position = jnp.arange(likely.shape[1], dtype=jnp.int32)[None]
    # After the first wrong token, the rest of a draft follows a wrong prefix and shows nothing.
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
    """Returns `Experience.typical` after one more draft."""
    likely = predict(draft, experience)
    mine = jax.nn.one_hot(_source(draft), SOURCES)
    # A token counts in proportion to the probability that it is reached.
    reached = jnp.cumprod(likely, axis=1) / jnp.maximum(likely, 1e-6)
    position = jnp.arange(likely.shape[1], dtype=jnp.int32)[None]
    reached = jnp.where(position < draft.lens[:, None], reached, 0.0)
    odds = experience.typical[_source(draft)] + _of_source(draft, experience.slots)
    surprise = (reached * (likely - jax.nn.sigmoid(odds)[:, None])).sum(axis=1)
    typical = _faded_to_unknown(experience.typical)
    typical += _shared_rate(reached.sum(axis=1) @ mine) * (surprise @ mine)
    return jnp.clip(typical, -CERTAIN, CERTAIN)


def _shared_rate(count: jax.Array) -> jax.Array:
    """Returns the rate at which each of `count` tokens moves a shared offset, float32[SOURCES]."""
    return SHARED_RATE * MANY / jnp.maximum(count, MANY)


def _faded_to_unknown(typical: jax.Array) -> jax.Array:
    """Fades to `UNKNOWN`, so that drafting that once did not pay gets another try in time."""
    return SHARED_MEMORY * typical + (1 - SHARED_MEMORY) * _odds(UNKNOWN)


def _source(draft: Draft) -> jax.Array:
    return jnp.zeros_like(draft.lens) if draft.source is None else draft.source


def _of_source(draft: Draft, by_source: jax.Array) -> jax.Array:
    return jnp.take_along_axis(by_source, _source(draft)[:, None], axis=1)[:, 0]


def _odds(probability: jax.Array | float) -> jax.Array:
    p = jnp.clip(jnp.asarray(probability, jnp.float32), 1e-4, 1 - 1e-4)
    return jnp.log(p) - jnp.log1p(-p)
