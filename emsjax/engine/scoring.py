"""The log-probabilities of a prompt's own tokens, which decoding never computes."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from emsjax.engine.devices import CACHE, SAME, Devices
from emsjax.engine.ladder import Rung
from emsjax.engine.model import Model
from emsjax.engine.packing import pack
from emsjax.sampling.logprobs import Logprobs, empty_logprobs, logprobs_of
from emsjax.sampling.vocabulary import WHOLE, Vocabulary

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
        devices: Devices,
        places: Any,
        vocabulary: Vocabulary,
    ):
        """Prepares the programs.

        Args:
          merge: returns the model with these parameters.
          rung: the shape of a step.
          capacity: S, the most tokens of a prompt.
          precision: of float32 products, see `jax.default_matmul_precision`.
          new_cache: makes an array of the cache; its elements may be anything.
          devices: that share the model.
          places: the places of the parameters on them.
          vocabulary: which tokens the logits are of.
        """
        self._rung, self._capacity, self._devices = rung, capacity, devices

        def score(
            params: nnx.State, cache: Any, tokens: jax.Array, start: jax.Array, count: jax.Array
        ) -> tuple[Any, Logprobs]:
            with jax.default_matmul_precision(precision):
                return score_rows(merge(params), rung, cache, tokens, start, count, vocabulary)

        def empty(params: nnx.State) -> Any:
            return jax.tree.map(new_cache, merge(params).cache_spec(1, capacity))

        given = places, CACHE, SAME, SAME, SAME
        self._score = devices.program(score, given, (CACHE, SAME), donate=(1,))
        self._empty = devices.program(empty, (places,), CACHE)

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
        cache, parts = self._empty(params), []
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
        cache = self._devices.abstract(jax.eval_shape(self._empty, params), CACHE)
        self._empty.lower(params).compile()
        self._score.lower(params, cache, tokens, scalar, scalar).compile()


def score_rows(
    model: Model,
    rung: Rung,
    cache: Any,
    tokens: jax.Array,
    start: jax.Array,
    count: jax.Array,
    vocabulary: Vocabulary = WHOLE,
) -> tuple[Any, Logprobs]:
    """Reads some tokens of one text, and scores the token after each of them.

    Args:
      model: the model.
      rung: the shape of the step; T is its capacity.
      cache: of one slot of S tokens, with the K/V of the tokens before `start`.
      tokens: int32[1, S], the text.
      start: int32[], the first token to read.
      count: int32[], the tokens to read, at most as many as the rung allows.
      vocabulary: which tokens the model's logits are of.

    Returns:
      The cache with their K/V, and the log-probabilities [T], of which the first `count` count.
    """
    batch = pack(tokens, start[None], count[None], rung.capacity)
    hidden, cache = model(batch, cache, max_q_len=rung.max_q_len)
    following = tokens[0, jnp.minimum(batch.positions + 1, tokens.shape[1] - 1)]
    size = math.gcd(rung.capacity, _CHUNK)
    chunks = hidden.reshape(-1, size, hidden.shape[1]), following.reshape(-1, size)

    def scored(chunk: tuple[jax.Array, jax.Array]) -> Logprobs:
        return logprobs_of(model.logits(chunk[0]), chunk[1], vocabulary)

    found = jax.lax.map(scored, chunks)
    return cache, jax.tree.map(lambda x: x.reshape(rung.capacity, *x.shape[2:]), found)
