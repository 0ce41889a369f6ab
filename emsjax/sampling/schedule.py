"""Tokens that are forbidden, or the only choice, at one place of a text."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emsjax.limits import MAX_SCHEDULED
from emsjax.sampling.forbidden import forbid
from emsjax.sampling.rows import Rows
from emsjax.sampling.vocabulary import WHOLE, Vocabulary


class Scheduled(NamedTuple):
    """What is scheduled in each slot; N entries, of which the unused have length 0.

    Attributes:
      lens: int32[..., N], the number of prompt and output tokens before the place.
      tokens: int32[..., N], the token.
      forced: bool[..., N], whether it is the only choice, along with others forced at the same
        place. It is forbidden otherwise.
    """

    lens: jax.Array
    tokens: jax.Array
    forced: jax.Array


def make_schedule(entries: Sequence[tuple[int, int, bool]] = ()) -> Scheduled:
    """Returns the schedule of one request, numpy arrays [N].

    Args:
      entries: length, token and `forced` of each, at most `MAX_SCHEDULED`.
    """
    empty = [(0, 0, False)] * (MAX_SCHEDULED - len(entries))
    lens, tokens, forced = zip(*entries, *empty, strict=True)
    return Scheduled(
        np.asarray(lens, np.int32),  # type: ignore[arg-type]
        np.asarray(tokens, np.int32),  # type: ignore[arg-type]
        np.asarray(forced, np.bool),  # type: ignore[arg-type]
    )


def is_due(rows: Rows, scheduled: Scheduled) -> jax.Array:
    """Returns which entries apply to the token that follows each row, bool[W, N]."""
    return scheduled.lens[rows.slots] == rows.positions[:, None] + 1


def keep_schedule(
    logits: jax.Array, rows: Rows, scheduled: Scheduled, vocabulary: Vocabulary = WHOLE
) -> jax.Array:
    """Applies what is due; returns float32[W, V].

    As in `transformers`, forced tokens are equally likely, and a token that is also forbidden is
    not chosen.

    Args:
      logits: float32[W, V].
      rows: the prefixes that the logits follow.
      scheduled: of all slots, [B, N] each.
      vocabulary: which tokens the logits are of.
    """
    width = logits.shape[1]
    due = is_due(rows, scheduled)
    tokens, forced = scheduled.tokens[rows.slots], scheduled.forced[rows.slots] & due
    logits = jnp.where(forced.any(axis=1, keepdims=True), logits - jnp.inf, logits)
    columns = jnp.where(forced, vocabulary.places(tokens, width), width)
    numbers = jnp.arange(logits.shape[0], dtype=jnp.int32)[:, None]
    logits = logits.at[numbers, columns].set(0.0, mode="drop")
    return forbid(logits, tokens, due & ~forced, vocabulary)
