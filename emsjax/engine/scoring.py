"""The log-probabilities of a prompt's own tokens, which decoding never computes."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from emsjax.engine.ladder import Rung
from emsjax.engine.model import Model
from emsjax.engine.packing import pack
from emsjax.sampling.logprobs import Logprobs, logprobs_of

# Rows whose logits are computed at a time, so that those of a whole prompt need not fit in memory.
_CHUNK = 32


def score_rows(
    model: Model,
    rung: Rung,
    cache: Any,
    tokens: jax.Array,
    start: jax.Array,
    count: jax.Array,
) -> tuple[Any, Logprobs]:
    """Reads some tokens of one text, and scores the token after each of them.

    Args:
      model: the model.
      rung: the shape of the step; T is its capacity.
      cache: of one slot of S tokens, with the K/V of the tokens before `start`.
      tokens: int32[1, S], the text.
      start: int32[], the first token to read.
      count: int32[], the tokens to read, at most as many as the rung allows.

    Returns:
      The cache with their K/V, and the log-probabilities [T], of which the first `count` count.
    """
    batch = pack(tokens, start[None], count[None], rung.capacity)
    hidden, cache = model(batch, cache, max_q_len=rung.max_q_len)
    following = tokens[0, jnp.minimum(batch.positions + 1, tokens.shape[1] - 1)]
    size = math.gcd(rung.capacity, _CHUNK)
    chunks = hidden.reshape(-1, size, hidden.shape[1]), following.reshape(-1, size)
    found = jax.lax.map(lambda chunk: logprobs_of(model.logits(chunk[0]), chunk[1]), chunks)
    return cache, jax.tree.map(lambda x: x.reshape(rung.capacity, *x.shape[2:]), found)
