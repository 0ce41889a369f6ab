"""The training loss of a recurrent draft: predict several of the target's tokens ahead."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from emsjax.models.recurrent_draft import RecurrentDraft, Shared

# Weight of a draft token relative to the one before it.
DECAY = 0.8
# Weights of the parts of the loss: cross-entropy with the target's token, and distance from its
# hidden state. Cross-entropy with the target's probabilities has weight 1.
HARD, HIDDEN = 0.5, 0.2


class Texts(NamedTuple):
    """A batch of R texts that the target wrote.

    Attributes:
      tokens: int32[R, W].
      hidden: float[R, W, D], the target's hidden state from which it chose each token.
      lens: int32[R], tokens of each row; the hidden state of a row's last token may be missing.
    """

    tokens: jax.Array
    hidden: jax.Array
    lens: jax.Array


class Guessed(NamedTuple):
    """Results for one position of the draft, summed over all drafts of a batch.

    Attributes:
      loss: float32[].
      counted: float32[], draft tokens evaluated.
      right: float32[], drafts that are right up to and including this position.
      reached: float32[], drafts that are right before this position.
    """

    loss: jax.Array
    counted: jax.Array
    right: jax.Array
    reached: jax.Array


def unroll(draft: RecurrentDraft, shared: Shared, texts: Texts, steps: int) -> list[Guessed]:
    """Drafts `steps` tokens from every token of every text.

    Each step reads the text's token rather than the draft's own. That is enough: only drafts that
    are right so far matter for acceptance, and their tokens are the text's.

    Args:
      draft: the draft.
      shared: the parts of the target that the draft computes with.
      texts: the batch.
      steps: number of tokens to draft.

    Returns:
      The results for each position of the draft.
    """
    rows, width = texts.tokens.shape
    places = jnp.arange(width, dtype=jnp.int32)[None]
    hidden = texts.hidden.reshape(rows * width, -1)
    alive = (places < texts.lens[:, None] - 1).ravel()
    # Index of each token in the draft's vocabulary, or -1.
    in_head = jnp.zeros(shared.embedding.shape[0], jnp.int32).at[shared.token_ids]
    number = in_head.set(jnp.arange(1, shared.token_ids.shape[0] + 1, dtype=jnp.int32)) - 1
    chosen_from = jax.nn.softmax(draft.logits(hidden, shared), axis=1).reshape(rows, width, -1)
    results = []
    for step in range(steps):
        fed = jnp.roll(texts.tokens, -step, axis=1).ravel()
        wanted = jnp.roll(texts.tokens, -step - 1, axis=1).ravel()
        truth = Truth(
            wanted=number[wanted],
            hidden=jnp.roll(texts.hidden, -step - 1, axis=1).reshape(rows * width, -1),
            p=jnp.roll(chosen_from, -step - 1, axis=1).reshape(rows * width, -1),
            there=(places + step + 1 < texts.lens[:, None]).ravel(),
            known=(places + step + 2 < texts.lens[:, None]).ravel(),
        )
        hidden = draft(hidden, shared.embed(fed))
        guessed, alive = judge(draft.logits(hidden, shared), hidden, truth, alive)
        results.append(guessed)
    return results


class Truth(NamedTuple):
    """The target's choice at one position of the draft, for each of N drafts.

    Attributes:
      wanted: int32[N], index of the target's token in the draft's vocabulary; -1 if not in it.
      hidden: [N, D], hidden state from which the token was chosen.
      p: float32[N, Vd], probabilities over the draft's vocabulary given `hidden`.
      there: bool[N], whether the text is long enough to have the token.
      known: bool[N], whether `hidden` and `p` are known.
    """

    wanted: jax.Array
    hidden: jax.Array
    p: jax.Array
    there: jax.Array
    known: jax.Array


def judge(
    logits: jax.Array, hidden: jax.Array, truth: Truth, alive: jax.Array
) -> tuple[Guessed, jax.Array]:
    """Returns the results for one position, and which drafts are still right, bool[N].

    Args:
      logits: float32[N, Vd], of the draft.
      hidden: [N, D], the draft's states that they are made from.
      truth: what the target chose.
      alive: bool[N], which drafts are right before the position.
    """
    logq = jax.nn.log_softmax(logits, axis=1)
    soft = -(truth.p * logq).sum(axis=1)
    hard = -jnp.take_along_axis(logq, jnp.maximum(truth.wanted, 0)[:, None], axis=1)[:, 0]
    off = jnp.abs(hidden - truth.hidden)
    regress = jnp.where(off < 1, 0.5 * off**2, off - 0.5).mean(axis=1)
    there = truth.there
    right = (jnp.argmax(logits, axis=1) == truth.wanted) & there
    parts = jnp.where(truth.known, soft + HIDDEN * regress, 0.0)
    parts += jnp.where(there & (truth.wanted >= 0), HARD * hard, 0.0)
    reached = alive & there
    still = reached & right
    sums = (x.astype(jnp.float32).sum() for x in (parts, there, still, reached))
    return Guessed(*sums), still


def total(results: list[Guessed]) -> jax.Array:
    """Returns the loss to minimise: the mean over draft tokens, with less weight for later ones."""
    weights = [DECAY**step for step in range(len(results))]
    losses = [w * r.loss / jnp.maximum(r.counted, 1) for w, r in zip(weights, results, strict=True)]
    return sum(losses, jnp.zeros((), jnp.float32)) / sum(weights)
