"""How likely each draft token is to be accepted: the drafter's confidence, corrected by experience.

The drafter reports how likely each of its tokens is to be right. The outcome of earlier drafts
corrects that, by online logistic regression with two offsets in log-odds. One belongs to each slot,
because its text may be easier or harder to guess than most. What a slot has shown is weighed
against how much texts differ, so that a few tokens move its offset little. The other is shared by
all slots, because the drafter may be too sure of itself, or not sure enough. Both fade, so that a
drafter that once failed gets another try in time.
"""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from emsjax.engine.draft import Draft
from emsjax.engine.tree import path_products, tree_of

# The number of ways of guessing that have separate experience, see `Draft.source`.
SOURCES = 4
# The acceptance probability assumed when the drafter reports none, and before the first draft.
UNKNOWN = 0.6
# The variance of the offsets of texts, and the share of what a slot has shown that still counts one
# step later.
SLOT_VARIANCE, SLOT_MEMORY = 0.2, 0.995
# How far a prediction is corrected by its error, and the share of an offset that remains one step
# later.
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
      known: float32[B, SOURCES], how much these are based on: the sum of p (1 - p) over predictions
        p, of which the older count less.
      shared: float32[SOURCES], for all requests.
      typical: float32[], the log-odds that one of the guesses at a depth is accepted if one at the
        depth before is, averaged over all that took time to draft, verified or not. The verified
        ones alone are better than average.
      in_vain: int32[], the steps in a row that had no draft worth verifying, see `rest`.
      rest: int32[], for how many steps drafting rests.
    """

    slots: jax.Array
    known: jax.Array
    shared: jax.Array
    typical: jax.Array
    in_vain: jax.Array
    rest: jax.Array


def no_experience(num_slots: int) -> Experience:
    """Returns the experience before the first step of B slots."""

    def zeros(*shape: int) -> jax.Array:
        return jnp.zeros(shape, jnp.float32)

    by_slot = num_slots, SOURCES
    return Experience(
        slots=zeros(*by_slot),
        known=zeros(*by_slot),
        shared=zeros(SOURCES),
        typical=_odds(UNKNOWN),
        in_vain=jnp.zeros((), jnp.int32),
        rest=jnp.zeros((), jnp.int32),
    )


def forget(experience: Experience, slot: jax.Array) -> Experience:
    """Returns the experience without what it holds about the previous request in the slot."""
    slots, known = (x.at[slot].set(0.0) for x in (experience.slots, experience.known))
    return dataclasses.replace(experience, slots=slots, known=known)


def predict(draft: Draft, experience: Experience) -> jax.Array:
    """Returns the probability that each draft token is accepted if those before it are.

    The result is float32[B, k].
    """
    said = jnp.float32(UNKNOWN) if draft.confidence is None else draft.confidence
    source = _source(draft)
    offset = _of_source(experience.slots, source) + experience.shared[source]
    odds = _odds(said) + offset
    # A drafter that computes NaN guesses at random. Its NaN must not enter the shared experience.
    odds = jnp.where(jnp.isnan(odds), -CERTAIN, odds)
    return jax.nn.sigmoid(jnp.clip(odds, -CERTAIN, CERTAIN))


def survival_of(likely: jax.Array, lens: jax.Array, parents: jax.Array | None = None) -> jax.Array:
    """Returns the probability that each draft token and all before it are accepted, float32[B, k].

    Args:
      likely: float32[B, k], see `predict`.
      lens: int32[B], the length of each draft; the result is 0 from there on.
      parents: see `Draft`.
    """
    position = jnp.arange(likely.shape[1], dtype=jnp.int32)[None]
    survival = jnp.cumprod(likely, axis=1) if parents is None else path_products(likely, parents)
    return jnp.where(position < lens[:, None], survival, 0.0)


def expect(experience: Experience, source: int, draft_length: int) -> jax.Array:
    """Predicts whether one of the guesses at each depth will be accepted if one before it is.

    Before anything is drafted, experience alone can tell. The result is float32[B, k], the same for
    all depths of a slot.
    """
    odds = experience.typical + experience.slots[:, source]
    return jnp.broadcast_to(jax.nn.sigmoid(odds)[:, None], (odds.shape[0], draft_length))


def learn(
    experience: Experience,
    draft: Draft,
    likely: jax.Array,
    tried: jax.Array,
    right: jax.Array,
) -> Experience:
    """Returns the experience after a step.

    Args:
      experience: before the step.
      draft: the guesses.
      likely: float32[B, k], see `predict`.
      tried: bool[B, k], which draft tokens the step has shown to be right or wrong.
      right: bool[B, k], which ones were right.
    """
    error = jnp.where(tried, right.astype(jnp.float32) - likely, 0.0)
    mine = jax.nn.one_hot(_source(draft), SOURCES)
    errors = (error[..., None] * mine).sum(axis=1)
    counts = (tried.astype(jnp.float32)[..., None] * mine).sum(axis=(0, 1))
    information = jnp.where(tried, likely * (1 - likely), 0.0)
    information = (information[..., None] * mine).sum(axis=1)
    slots, known = _learn_slots(experience, errors, information)
    return dataclasses.replace(
        experience,
        slots=slots,
        known=known,
        shared=SHARED_MEMORY * experience.shared + _shared_rate(counts) * errors.sum(axis=0),
        typical=_learn_typical(experience, draft if draft.costly is None else draft.costly),
    )


def _learn_slots(
    experience: Experience, errors: jax.Array, information: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns `Experience.slots` and `Experience.known` after a step.

    The posterior of a normal prior around 0, by a step of Newton's method from the offset before.

    Args:
      experience: before the step.
      errors: float32[B, SOURCES], the sum of outcomes minus predictions.
      information: float32[B, SOURCES], the sum of p (1 - p) over the predictions p.
    """
    prior = 1 / SLOT_VARIANCE
    faded = SLOT_MEMORY * experience.known
    # What is forgotten leaves the prior, which pulls the offset towards 0.
    slots = experience.slots * SLOT_MEMORY * (prior + experience.known) / (prior + faded)
    known = faded + information
    slots += errors / (prior + known)
    return jnp.clip(slots, -CERTAIN, CERTAIN), known


def _learn_typical(experience: Experience, draft: Draft) -> jax.Array:
    """Returns `Experience.typical` after one more draft."""
    if draft.tokens.shape[1] == 0:
        return experience.typical
    survival = survival_of(predict(draft, experience), draft.lens, draft.parents)
    tree, there = tree_of(draft), survival > 0
    depth = jnp.arange(survival.shape[1], dtype=jnp.int32)[None] + 1
    depth = jnp.where(there, depth if tree is None else tree.depths[:, 1:], 0)
    deepest = depth == depth.max(axis=1, keepdims=True)
    accepted = survival.sum(axis=1)
    # The newest known token, and the expected guesses at all depths after which one more follows.
    before = 1 + accepted - jnp.where(deepest, survival, 0.0).sum(axis=1)
    before = jnp.where(there.any(axis=1), before, 0.0)
    first = _source(draft)[:, :1]
    odds = experience.typical + _of_source(experience.slots, first)[:, 0]
    surprise = accepted - before * jax.nn.sigmoid(odds)
    typical = _faded_to_unknown(experience.typical)
    typical += _shared_rate(before.sum()) * surprise.sum()
    return jnp.clip(typical, -CERTAIN, CERTAIN)


def _shared_rate(count: jax.Array) -> jax.Array:
    """Returns the rate at which each of `count` tokens moves a shared offset."""
    return SHARED_RATE * MANY / jnp.maximum(count, MANY)


def _faded_to_unknown(typical: jax.Array) -> jax.Array:
    """Fades to `UNKNOWN`, so that drafting that once did not pay gets another try in time."""
    return SHARED_MEMORY * typical + (1 - SHARED_MEMORY) * _odds(UNKNOWN)


def _source(draft: Draft) -> jax.Array:
    return jnp.zeros_like(draft.tokens) if draft.source is None else draft.source


def _of_source(by_source: jax.Array, source: jax.Array) -> jax.Array:
    """Returns the entries of float32[B, SOURCES] for the guesses' sources int32[B, k]."""
    return jnp.take_along_axis(by_source, source, axis=1)


def _odds(probability: jax.Array | float) -> jax.Array:
    p = jnp.clip(jnp.asarray(probability, jnp.float32), 1e-4, 1 - 1e-4)
    return jnp.log(p) - jnp.log1p(-p)
