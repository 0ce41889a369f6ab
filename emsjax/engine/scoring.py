"""The log-probabilities of a prompt's own tokens, which decoding never computes."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from emsjax.engine.ladder import Rung
from emsjax.engine.model import Model
from emsjax.engine.packing import pack
from emsjax.sampling.logprobs import Logprobs, empty_logprobs, logprobs_of

# Rows whose logits are computed at a time, so that those of a whole prompt need not fit in memory.
_CHUNK = 32


class Scorer:
    """Scores prompts, one at a time, with a program of their own."""

    def __init__(
        self,
        merge: Callable[[nnx.State], Model],
        rung: Rung,
        capacity: int,
        precision: str | None,
        new_cache: Callable[[jax.ShapeDtypeStruct], jax.Array],
    ):
        """Prepares the program.

        Args:
          merge: returns the model with these parameters.
          rung: the shape of a step.
          capacity: S, the most tokens of a prompt.
          precision: of float32 products, see `jax.default_matmul_precision`.
          new_cache: makes an array of the cache; its elements may be anything.
        """
        self._merge, self._rung = merge, rung
        self._capacity, self._new_cache = capacity, new_cache

        def score(params: nnx.State, *arguments: Any) -> tuple[Any, Logprobs]:
            with jax.default_matmul_precision(precision):
                return score_rows(merge(params), rung, *arguments)

        self._score = jax.jit(score, donate_argnums=1)

    def score(self, params: nnx.State, prompt: Sequence[int]) -> Logprobs:
        """Returns the log-probability of each token of a prompt after those before it.

        The prompt is read in a cache of its own, which needs memory for another slot meanwhile.

        Args:
          params: the model's parameters.
          prompt: n token ids, at most S.

        Returns:
          Numpy arrays [n - 1, ...]: nothing comes before the first token.
        """
        tokens = np.zeros((1, self._capacity), np.int32)
        tokens[0, : len(prompt)] = prompt
        most, rows = min(self._rung), len(prompt) - 1
        cache = jax.tree.map(self._new_cache, self._cache_spec(params))
        parts = []
        for start in range(0, rows, most):
            count = min(most, rows - start)
            span = np.int32(start), np.int32(count)
            cache, found = self._score(params, cache, tokens, *span)
            parts.append(jax.tree.map(lambda x, n=count: np.asarray(x)[:n], found))
        if not parts:
            return jax.tree.map(np.asarray, empty_logprobs((0,)))
        return jax.tree.map(lambda *x: np.concatenate(x), *parts)

    def compile(self, params: nnx.State) -> None:
        """Compiles what `score` runs."""
        tokens, scalar = np.zeros((1, self._capacity), np.int32), np.int32(0)
        self._score.lower(params, self._cache_spec(params), tokens, scalar, scalar).compile()

    def _cache_spec(self, params: nnx.State) -> Any:
        return self._merge(params).cache_spec(1, self._capacity)


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
