"""Guessing what `choose` will choose, for drafters, and how sure they can be.

A sampled token is the largest of the target's logits with noise that is known beforehand. So a
drafter that adds the same noise to its own logits guesses the token itself, not its probability:
an unlikely token that the noise favours is the right guess. How sure it can be depends on by how
much the guess wins with the noise, and on its probability without.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from emsjax.sampling.blocks import first_max
from emsjax.sampling.choose import scaled, weighed
from emsjax.sampling.draw import likeliest_draws
from emsjax.sampling.rows import Rows, Slots

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


def guess(logits: jax.Array, rows: Rows, state: Slots, count: int = 1) -> Guesses:
    """Guesses the token that follows each row. The first guess is the one `choose` would choose.

    Logits of a drafter that are not numbers cost time and change no text.

    Args:
      logits: float32[W, V], of the drafter; -inf for tokens that it cannot guess.
      rows: the prefixes that the logits follow.
      state: the state of all slots.
      count: C.
    """
    if state.sampling is None:
        return likeliest(logits, count)
    given = weighed(logits, rows, state, state.sampling)
    keys = state.sampling.keys[rows.slots]

    def sampled() -> Guesses:
        x = scaled(given.logits, given.temperature, given.settings)
        drawn = likeliest_draws(x, given.temperature, keys, rows.positions, count)
        share = jnp.take_along_axis(jax.nn.softmax(given.logits, axis=1), drawn.tokens, axis=1)
        always, without, with_noise = jnp.asarray([FIRST] + [FURTHER] * (count - 1)).T[:, None]
        odds = always + without * _odds(share) + with_noise * _odds(drawn.share)
        return Guesses(drawn.tokens, jnp.where(drawn.share > 0, jax.nn.sigmoid(odds), 0.0))

    greedy = likeliest(given.logits, count)
    hot = given.hot[:, None]
    return jax.lax.cond(
        hot.any(),
        lambda: jax.tree.map(lambda a, b: jnp.where(hot, a, b), sampled(), greedy),
        lambda: greedy,
    )


def likeliest(logits: jax.Array, count: int) -> Guesses:
    """Returns the tokens with the largest logits [W, V], and their probability."""
    columns = jnp.arange(logits.shape[1], dtype=jnp.int32)[None]
    shares = jax.nn.softmax(logits, axis=1)
    left, tokens = logits, []
    for _ in range(count):
        tokens.append(first_max(left)[:, None])
        left = jnp.where(columns == tokens[-1], -jnp.inf, left)
    found = jnp.concatenate(tokens, axis=1)
    return Guesses(found, jnp.take_along_axis(shares, found, axis=1))


def _odds(share: jax.Array) -> jax.Array:
    p = jnp.clip(share, 1e-4, 1 - 1e-4)
    return jnp.log(p) - jnp.log1p(-p)
