"""What a recurrent draft learns: to go on as its target would, several tokens without looking."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from emsjax.models.recurrent_draft import RecurrentDraft, Shared

# What a token further along the draft counts, against the one before it.
DECAY = 0.8
# Weights of the parts of the loss.
HARD, HIDDEN, JUDGE = 0.5, 0.2, 0.1


class Texts(NamedTuple):
    """What a target wrote, and what it chose each token from.

    Attributes:
      tokens: int32[R, W].
      hidden: float[R, W, D], each token was chosen from.
      lens: int32[R], tokens of each row; the hidden state of the last one may be missing.
    """

    tokens: jax.Array
    hidden: jax.Array
    lens: jax.Array


class Guessed(NamedTuple):
    """How one place of the draft did, summed over the places of a text.

    Attributes:
      loss: float32[].
      counted: float32[], guesses that were judged.
      right: float32[], drafts right up to and with this place.
      reached: float32[], drafts right before this place.
    """

    loss: jax.Array
    counted: jax.Array
    right: jax.Array
    reached: jax.Array


def unroll(draft: RecurrentDraft, shared: Shared, texts: Texts, steps: int) -> list[Guessed]:
    """Drafts `steps` tokens from every token of every text, the true ones fed in.

    Only drafts that are right so far matter to acceptance, and those have the true tokens in them.
    """
    rows, width = texts.tokens.shape
    places = jnp.arange(width, dtype=jnp.int32)[None]
    hidden = texts.hidden.reshape(rows * width, -1)
    alive = (places < texts.lens[:, None] - 1).ravel()
    in_head = jnp.zeros(shared.embedding.shape[0], jnp.int32).at[shared.token_ids]
    number = in_head.set(jnp.arange(1, shared.token_ids.shape[0] + 1, dtype=jnp.int32)) - 1
    chosen_from = jax.nn.softmax(draft.logits(hidden, shared), axis=1).reshape(rows, width, -1)
    results = []
    for step in range(steps):
        fed = jnp.roll(texts.tokens, -step, axis=1).ravel()
        wanted = jnp.roll(texts.tokens, -step - 1, axis=1).ravel()
        truth = _Truth(
            wanted=number[wanted],
            hidden=jnp.roll(texts.hidden, -step - 1, axis=1).reshape(rows * width, -1),
            p=jnp.roll(chosen_from, -step - 1, axis=1).reshape(rows * width, -1),
            there=(places + step + 1 < texts.lens[:, None]).ravel(),
            known=(places + step + 2 < texts.lens[:, None]).ravel(),
        )
        hidden = draft(hidden, shared.embedding[fed])
        guessed, alive = _judge(draft, shared, hidden, truth, alive)
        results.append(guessed)
    return results


class _Truth(NamedTuple):
    """What the target chose at one place of the draft, for each of N drafts.

    Attributes:
      wanted: int32[N], its token's place in the draft's vocabulary; -1 for none.
      hidden: [N, D], chosen from.
      p: float32[N, Vd], with these probabilities.
      there: bool[N], whether the text goes so far.
      known: bool[N], whether `hidden` and `p` are.
    """

    wanted: jax.Array
    hidden: jax.Array
    p: jax.Array
    there: jax.Array
    known: jax.Array


def _judge(
    draft: RecurrentDraft, shared: Shared, hidden: jax.Array, truth: _Truth, alive: jax.Array
) -> tuple[Guessed, jax.Array]:
    """One place: the loss, and which drafts are still right."""
    logits = draft.logits(hidden, shared)
    logq = jax.nn.log_softmax(logits, axis=1)
    soft = -(truth.p * logq).sum(axis=1)
    hard = -jnp.take_along_axis(logq, jnp.maximum(truth.wanted, 0)[:, None], axis=1)[:, 0]
    off = jnp.abs(hidden - truth.hidden)
    regress = jnp.where(off < 1, 0.5 * off**2, off - 0.5).mean(axis=1)
    there = truth.there
    right = (jnp.argmax(logits, axis=1) == truth.wanted) & there
    given = jnp.exp(logq.max(axis=1))
    odds = draft.confidence(*jax.lax.stop_gradient((hidden, given)))
    doubt = jax.nn.softplus(jnp.where(right, -odds, odds))
    parts = (
        jnp.where(truth.known, soft + HIDDEN * regress, 0.0)
        + jnp.where(there & (truth.wanted >= 0), HARD * hard, 0.0)
        + jnp.where(there & alive, JUDGE * doubt, 0.0)
    )
    reached = alive & there
    still = reached & right
    sums = (x.astype(jnp.float32).sum() for x in (parts, there, still, reached))
    return Guessed(*sums), still


def total(results: list[Guessed]) -> jax.Array:
    """One number to make small: the mean loss of a guess, earlier places counting more."""
    weights = [DECAY**step for step in range(len(results))]
    losses = [w * r.loss / jnp.maximum(r.counted, 1) for w, r in zip(weights, results, strict=True)]
    return sum(losses, jnp.zeros((), jnp.float32)) / sum(weights)
