"""Guessing what `choose` will choose, for drafters, and how sure they can be.

A sampled token is the largest of the target's logits with noise that is known beforehand. So a
drafter that adds the same noise to its own logits guesses the token itself, not its probability:
an unlikely token that the noise favours is the right guess. How sure it can be depends on by how
much the guess wins with the noise, and on its probability without.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from emsjax.sampling.choose import scaled, weighed
from emsjax.sampling.draw import likeliest_draws
from emsjax.sampling.rows import Rows, Slots
from emsjax.sampling.vocabulary import WHOLE, Vocabulary

# The log-odds that the first guess is right, and that one further guess is: a constant, and the
# weights of the log-odds of its share without the noise and with it. Fitted to 4,222 places of
# texts that SmolLM2-135M-Instruct wrote at temperature 1, and what the draft that comes with it
# guesses there. At 0.6 they are nearly as good as weights fitted there.
FIRST, FURTHER = (-0.38, 0.10, 0.62), (-0.29, 0.15, 0.73)


class Guesses(NamedTuple):
    """C guesses at the token after each row.

    Attributes:
      tokens: int32[W, C], different from each other, likeliest first.
      confidence: float32[W, C], how likely each is right; 0 for a token that cannot be chosen.
    """

    tokens: jax.Array
    confidence: jax.Array


def guess(
    logits: jax.Array,
    rows: Rows,
    state: Slots,
    count: int = 1,
    vocabulary: Vocabulary = WHOLE,
) -> Guesses:
    """Guesses the token that follows each row. The first guess is the one `choose` would choose.

    Logits of a drafter that are not numbers cost time and change no text.

    Args:
      logits: float32[W, V], of the drafter, or this device's part of them; -inf for tokens that it
        cannot guess.
      rows: the prefixes that the logits follow.
      state: the state of all slots.
      count: C.
      vocabulary: which tokens the logits are of.
    """
    if state.sampling is None:
        return likeliest(logits, count, vocabulary)
    given = weighed(logits, rows, state, state.sampling, vocabulary)
    keys = state.sampling.keys[rows.slots]
    # Exchanged before the branch, for both of its sides, see `docs/several-devices.md`.
    total = vocabulary.log_total(given.logits)

    def sampled() -> Guesses:
        unit = given.temperature
        x = scaled(given.logits, unit, given.settings, vocabulary)
        drawn = likeliest_draws(x, unit, keys, rows.positions, count, vocabulary)
        share = _shares(given.logits, drawn.tokens, total, vocabulary)
        always, without, with_noise = jnp.asarray([FIRST] + [FURTHER] * (count - 1)).T[:, None]
        odds = always + without * _odds(share) + with_noise * _odds(drawn.share)
        return Guesses(drawn.tokens, jnp.where(drawn.share > 0, jax.nn.sigmoid(odds), 0.0))

    greedy = _likeliest(given.logits, total, count, vocabulary)
    hot = given.hot[:, None]
    return jax.lax.cond(
        hot.any(),
        lambda: jax.tree.map(lambda a, b: jnp.where(hot, a, b), sampled(), greedy),
        lambda: greedy,
    )


def likeliest(logits: jax.Array, count: int, vocabulary: Vocabulary = WHOLE) -> Guesses:
    """Returns the tokens with the largest logits [W, V], and their probability."""
    return _likeliest(logits, vocabulary.log_total(logits), count, vocabulary)


def _likeliest(logits: jax.Array, total: jax.Array, count: int, vocabulary: Vocabulary) -> Guesses:
    width = logits.shape[1]
    columns = jnp.arange(width, dtype=jnp.int32)[None]
    left, tokens = logits, []
    for _ in range(count):
        tokens.append(vocabulary.first_max(left)[0][:, None])
        left = jnp.where(columns == vocabulary.places(tokens[-1], width), -jnp.inf, left)
    found = jnp.concatenate(tokens, axis=1)
    return Guesses(found, _shares(logits, found, total, vocabulary))


def _shares(
    logits: jax.Array, tokens: jax.Array, total: jax.Array, vocabulary: Vocabulary
) -> jax.Array:
    """Returns the probabilities float32[W, C] of tokens int32[W, C] by logits [W, V].

    `total` is the logits' `Vocabulary.log_total`, float32[W].
    """
    return jnp.exp(vocabulary.at(logits, tokens) - total[:, None])


def _odds(share: jax.Array) -> jax.Array:
    p = jnp.clip(share, 1e-4, 1 - 1e-4)
    return jnp.log(p) - jnp.log1p(-p)
