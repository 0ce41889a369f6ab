"""Log-probabilities of emitted tokens, under the model's own logits before any adjustment."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emsjax.limits import MAX_LOGPROBS
from emsjax.sampling.vocabulary import WHOLE, Vocabulary


class Logprobs(NamedTuple):
    """The log-probabilities of tokens in an array of any shape [...].

    In the table for B slots of S tokens, all four arrays are flat. Otherwise writing a few tokens
    would copy the table on TPUs.

    Attributes:
      chosen: float32[...], log-probability of the token.
      rank: int32[...], rank of the token in the vocabulary; 1 for the likeliest.
      top_ids: int32[..., 20], the likeliest tokens, likeliest first.
      top: float32[..., 20], log-probabilities of the likeliest tokens.
    """

    chosen: jax.Array
    rank: jax.Array
    top_ids: jax.Array
    top: jax.Array


def empty_logprobs(shape: tuple[int, ...]) -> Logprobs:
    """Returns zeros for tokens in an array of this shape."""
    many = (*shape, MAX_LOGPROBS)
    shapes = (shape, jnp.float32), (shape, jnp.int32), (many, jnp.int32), (many, jnp.float32)
    return Logprobs(*(jnp.zeros(each, dtype) for each, dtype in shapes))


def empty_table(num_slots: int, capacity: int) -> Logprobs:
    """Returns an empty table for B slots of S tokens."""
    return jax.tree.map(jnp.ravel, empty_logprobs((num_slots, capacity)))


def logprobs_of(logits: jax.Array, tokens: jax.Array, vocabulary: Vocabulary = WHOLE) -> Logprobs:
    """Returns the log-probabilities of tokens int32[W] under logits float32[W, V].

    Args:
      logits: of all tokens, or this device's part of them.
      tokens: the tokens.
      vocabulary: which tokens the logits are of.
    """
    total = vocabulary.log_total(logits)
    chosen = vocabulary.at(logits, tokens[:, None])
    likelier = vocabulary.total((logits > chosen).sum(axis=1, dtype=jnp.int32))
    top, top_ids = vocabulary.top(logits, MAX_LOGPROBS)
    missing = ((0, 0), (0, MAX_LOGPROBS - top.shape[1]))
    return Logprobs(
        chosen=chosen[:, 0] - total,
        rank=likelier + 1,
        top_ids=jnp.pad(top_ids, missing),
        top=jnp.pad(top - total[:, None], missing, constant_values=-jnp.inf),
    )


def record(table: Logprobs, new: Logprobs, lens: jax.Array, emitted: jax.Array) -> Logprobs:
    """Writes the first `emitted[b]` of `new` [B, n, ...] into the table from `lens[b]` on."""
    num_slots, count = new.chosen.shape
    size = table.chosen.shape[0]
    steps = jnp.arange(count, dtype=jnp.int32)[None]
    firsts = jnp.arange(num_slots, dtype=jnp.int32) * (size // num_slots) + lens
    # Places past the end of the table are dropped.
    places = jnp.where(steps < emitted[:, None], firsts[:, None] + steps, size)
    lanes = jnp.arange(MAX_LOGPROBS, dtype=jnp.int32)[None, None]
    spread = places[:, :, None] * MAX_LOGPROBS + lanes
    indices = (places, places, spread, spread)
    return Logprobs(
        *(
            old.at[index.ravel()].set(x.ravel(), mode="drop")
            for old, index, x in zip(table, indices, new, strict=True)
        )
    )


def of_slot(table: Logprobs, num_slots: int, slot: int, span: slice) -> Logprobs:
    """Returns a span of one slot's tokens, as numpy arrays [n, ...]."""
    arrays = jax.tree.map(lambda x: x.reshape(num_slots, -1)[slot], table)
    chosen, rank, top_ids, top = map(np.asarray, arrays)
    many = [x.reshape(-1, MAX_LOGPROBS)[span] for x in (top_ids, top)]
    return Logprobs(chosen[span], rank[span], *many)  # type: ignore[arg-type]
