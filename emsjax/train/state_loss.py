"""The training loss of guessed states: predict several of the target's tokens ahead.

The guessed states go through the target's last layers, which are frozen. A guess depends on the
guess before it at most, as in decoding, and the tokens between them are the text's, see
`loss.unroll`. So all guesses are known before the layers run, and the layers run once for all of
them.
"""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from emsjax.engine.model import Inner
from emsjax.models.decoder import DecoderLM
from emsjax.models.draft_rows import draft_context
from emsjax.models.recurrent_draft import Shared
from emsjax.train.loss import HARD, Guessed
from emsjax.train.whole_texts import Reading, WholeTexts, read_whole


class Sizes(Protocol):
    """The part of a guess's configuration that the loss reads."""

    @property
    def first_layer(self) -> int:
        """The layer whose inputs are guessed."""


class Guess(Protocol):
    """What is trained: a `StateMap` or a `HiddenTransfer`."""

    @property
    def config(self) -> Sizes:
        """Its sizes."""

    def ahead(self, states: jax.Array, embedded: jax.Array) -> jax.Array:
        """Returns states [n, W, D] of the next n tokens.

        Args:
          states: [W, D], of the token before them.
          embedded: [n, W, E], of the tokens.
        """


class Frozen(NamedTuple):
    """The arrays of the target that the loss computes with.

    Attributes:
      shared: embedding and reduced output projection.
      target: parameters of the target.
    """

    shared: Shared
    target: Any


def unroll_states(
    guess: Guess,
    target: DecoderLM,
    shared: Shared,
    texts: WholeTexts,
    steps: int,
    places: int,
) -> list[Guessed]:
    """Drafts `steps` tokens behind every token of every output.

    Args:
      guess: what guesses the states.
      target: the target.
      shared: the parts of the target that the draft computes with.
      texts: the batch.
      steps: number of tokens to draft.
      places: at least the tokens of the longest output.

    Returns:
      The results for each position of the draft.
    """
    layer = guess.config.first_layer
    reading = read_whole(target, texts, layer, places)
    states = guess_states(guess, shared, reading, steps)
    hidden = run_drafts(target, Inner(states, layer), reading, texts.starts)
    # Index of each token in the draft's vocabulary, or -1.
    in_head = jnp.full(shared.embedding.shape[0], -1, jnp.int32).at[shared.token_ids]
    number = in_head.set(jnp.arange(shared.token_ids.shape[0], dtype=jnp.int32))
    rows = reading.outputs.shape[0]
    final = reading.hidden.reshape(rows * places, -1)
    p = jax.nn.softmax(target.logits(final, shared), axis=1).reshape(rows, places, -1)
    place = jnp.arange(places, dtype=jnp.int32)[None]
    alive = (place + 1 < reading.counts[:, None]).ravel()
    results = []
    for step in range(steps):
        logits = target.logits(hidden[step].reshape(rows * places, -1), shared)
        wanted = number[jnp.roll(reading.outputs, -step - 1, axis=1)].ravel()
        there = (place + step + 1 < reading.counts[:, None]).ravel()
        soft = jnp.roll(p, -step - 1, axis=1).reshape(rows * places, -1)
        logq = jax.nn.log_softmax(logits, axis=1)
        hard = -jnp.take_along_axis(logq, jnp.maximum(wanted, 0)[:, None], axis=1)[:, 0]
        loss = -(soft * logq).sum(axis=1) + jnp.where(wanted >= 0, HARD * hard, 0.0)
        right = (jnp.argmax(logits, axis=1) == wanted) & there
        reached = alive & there
        alive = reached & right
        parts = jnp.where(there, loss, 0.0), there, alive, reached
        results.append(Guessed(*(x.astype(jnp.float32).sum() for x in parts)))
    return results


def guess_states(guess: Guess, shared: Shared, reading: Reading, steps: int) -> jax.Array:
    """Returns the guessed inputs of the layer, [steps, R, A, D]: of the token at a place and on."""
    rows, places, width = reading.inner.shape
    fed = jnp.stack([jnp.roll(reading.outputs, -step, axis=1).ravel() for step in range(steps)])
    embedded = shared.embed(fed.ravel()).reshape(steps, rows * places, -1)
    states = reading.inner.reshape(rows * places, width).astype(jnp.float32)
    return guess.ahead(states, embedded).reshape(steps, rows, places, width)


def run_drafts(target: DecoderLM, start: Inner, reading: Reading, starts: jax.Array) -> jax.Array:
    """Runs the target's last layers on drafts behind every place.

    Args:
      target: the target.
      start: states [steps, R, A, D] of the drafts' rows.
      reading: of the texts.
      starts: int32[R], tokens of each prompt.

    Returns:
      The final hidden states [steps, R, A, E].
    """
    steps, rows, places, width = start.states.shape
    first = starts[:, None] + jnp.arange(places, dtype=jnp.int32)[None]
    context, own = draft_context(target.config, reading.cache, first, steps, target.dtype)
    flat = Inner(start.states.reshape(-1, width).astype(target.dtype), start.layer)
    done = target.run_layers(flat, own, context, differentiable=True)
    return done.hidden.reshape(steps, rows, places, -1)
