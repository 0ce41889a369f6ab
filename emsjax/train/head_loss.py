"""The training loss of a Jakiro head: predict several of the target's tokens ahead.

The head reads whole texts, prompts included, and then drafts behind every token of the outputs, as
in decoding: each row continues from the row before, and reads the text's token, see `loss.unroll`.
EAGLE-1 and Jakiro are trained on one row behind every token, with noise on what the head reads in
place of the head's own states. Here the head's own states take that place. The weights of the
parts of the loss are those of `loss`, which favour the target's choice over its states.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from emsjax.models.decoder import DecoderLM
from emsjax.models.head_rows import HeadRows, at_places, head_context
from emsjax.models.jakiro_head import JakiroHead
from emsjax.models.recurrent_draft import Shared
from emsjax.train.loss import Guessed, Truth, judge
from emsjax.train.whole_texts import WholeTexts, read_whole

# Weight of the guess at the token after the next, as in Jakiro's own training.
CONTRAST = 0.5


class Truths(NamedTuple):
    """What the target chose in the outputs of R texts. Place a is that of the a-th output.

    Attributes:
      number: int32[R, A], index of each token in the draft's vocabulary; -1 if not in it.
      hidden: [R, A, D], the final state from which it was chosen.
      p: float32[R, A, Vd], the probabilities over the draft's vocabulary.
      there: bool[R, A], whether there is a token.
    """

    number: jax.Array
    hidden: jax.Array
    p: jax.Array
    there: jax.Array

    def ahead(self, steps: int) -> Truth:
        """Returns what is `steps` places ahead of each place, as rows."""
        texts, places = self.there.shape
        number, hidden, p, there = (jnp.roll(x, -steps, axis=1) for x in self)
        known = (there & (jnp.arange(places, dtype=jnp.int32)[None] < places - steps)).ravel()
        rows = texts * places
        flat = number.ravel(), hidden.reshape(rows, -1), p.reshape(rows, -1)
        return Truth(*flat, there=known, known=known)


def unroll_head(
    head: JakiroHead,
    target: DecoderLM,
    shared: Shared,
    texts: WholeTexts,
    steps: int,
    places: int,
) -> list[Guessed]:
    """Drafts `steps` tokens behind every token of every output.

    Args:
      head: the head.
      target: the target.
      shared: the parts of the target that the draft computes with.
      texts: the batch.
      steps: number of tokens to draft.
      places: A, at least the tokens of the longest output.

    Returns:
      The results for each position of the draft. Right are the drafts whose tokens are all guessed
      as the next one of their row.
    """
    count, width = texts.tokens.shape
    # Place a of the whole text is that of the token before the a-th but one.
    reading = read_whole(target, texts._replace(starts=jnp.ones_like(texts.lens)), 0, width)
    after = jnp.arange(places, dtype=jnp.int32)[None]
    begins = jnp.clip(texts.starts[:, None] - 1 + after, 0, width - 1)

    def embedded(where: jax.Array) -> jax.Array:
        tokens = jnp.take_along_axis(reading.outputs, jnp.minimum(where, width - 1), axis=1)
        return shared.embed(tokens.ravel()).astype(head.dtype)

    truths = _truths(target, shared, texts, reading.hidden, reading.outputs, begins)
    alive = truths.ahead(1).there
    everywhere = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32)[None], (count, width))
    context = head_context(head.config.layers, everywhere, 0, head.dtype)
    read = reading.hidden.reshape(count * width, -1).astype(head.dtype)
    states, rows = head.run_layers(read, embedded(everywhere), HeadRows(None, None), context)
    of_text = states.reshape(count, width, -1)
    states = jnp.take_along_axis(of_text, begins[..., None], axis=1).reshape(count * places, -1)
    rows, results = at_places(rows, begins), []
    for step in range(steps):
        if step:
            context = head_context(head.config.layers, begins, step, head.dtype)
            states, rows = head.run_layers(states, embedded(begins + step), rows, context)
        following, later = jnp.split(states, 2, axis=1)
        logits = target.logits(following, shared)
        guessed, alive = judge(logits, following, truths.ahead(step + 1), alive)
        contrast, _ = judge(target.logits(later, shared), later, truths.ahead(step + 2), alive)
        results.append(guessed._replace(loss=guessed.loss + CONTRAST * contrast.loss))
    return results


def _truths(
    target: DecoderLM,
    shared: Shared,
    texts: WholeTexts,
    hidden: jax.Array,
    following: jax.Array,
    begins: jax.Array,
) -> Truths:
    """Returns what the target chose after each place of `begins`, int32[R, A].

    Args:
      target: the target.
      shared: the parts of the target that the draft computes with.
      texts: the batch.
      hidden: [R, W, D], the target's final states.
      following: int32[R, W], the token after each one.
      begins: the places before the outputs.
    """
    in_head = jnp.full(shared.embedding.shape[0], -1, jnp.int32).at[shared.token_ids]
    number = in_head.set(jnp.arange(shared.token_ids.shape[0], dtype=jnp.int32))
    chosen_from = jnp.take_along_axis(hidden, begins[..., None], axis=1)
    flat = chosen_from.reshape(-1, hidden.shape[-1])
    p = jax.nn.softmax(target.logits(flat, shared), axis=1)
    after = jnp.arange(begins.shape[1], dtype=jnp.int32)[None]
    return Truths(
        number=number[jnp.take_along_axis(following, begins, axis=1)],
        hidden=chosen_from,
        p=p.reshape(*begins.shape, -1),
        there=after < (texts.lens - texts.starts)[:, None],
    )
