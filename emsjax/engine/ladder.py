"""The ladder: the few shapes that a step may take, and which one fits.

A packed buffer whose capacity is that of the padded batch costs what padding costs. So the
program holds several capacities, cheapest first, and each step runs the first that fits.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from emsjax.shapes import round_up

# What matrix units and vector registers handle at full speed: fewer rows save little.
ROW_MULTIPLE = 8
EXACT_CAPACITY = 64


class Rung(NamedTuple):
    """One shape of a step.

    Attributes:
      capacity: T, the rows it can hold.
      max_q_len: the most rows one slot may have in it.
    """

    capacity: int
    max_q_len: int


def make_ladder(
    num_slots: int,
    draft_length: int,
    *,
    exact: bool = False,
    exact_capacity: int = EXACT_CAPACITY,
    narrowest: int = ROW_MULTIPLE,
    prefill_chunk: int = 256,
) -> tuple[Rung, ...]:
    """Rungs from cheapest to dearest.

    First one row a slot (plain decoding), then doubling capacities up to every slot's longest
    draft, and prefill chunks beside and beyond them.

    Args:
      num_slots: B.
      draft_length: k, 0 where nothing is ever drafted.
      exact: one capacity for everything, the same for every B up to it: results are then equal
        bit for bit whatever is in the batch.
      exact_capacity: that capacity, in tokens; rounded up to a multiple of it for a larger B.
      narrowest: the fewest rows, beside one alone, that are worth a rung.
      prefill_chunk: the most rows of one prefill step, in tokens.
    """
    if exact:
        capacity = round_up(num_slots, exact_capacity)
        return (Rung(capacity, capacity),)
    plain = row_capacity(num_slots, narrowest)
    rungs = [Rung(plain, 1)]
    if draft_length > 0:
        rungs += _draft_rungs(num_slots, draft_length + 1, narrowest)
    # At least the drafts' rung: a plan may fill the largest capacity with one slot's prompt.
    widest = round_up(max(2 * num_slots, rungs[-1].capacity), prefill_chunk)
    # Where slots free up one by one, prompts are read one by one: short ones want less room.
    chunks = [chunk for chunk in (widest // 4, widest // 2, widest) if chunk > plain]
    return tuple(sorted([*rungs, *(Rung(chunk, chunk) for chunk in chunks)]))


def row_capacity(rows: int, narrowest: int) -> int:
    """The capacity that holds so many rows; one row alone may have its own."""
    if rows == 1:
        return 1
    return narrowest if rows <= narrowest else round_up(rows, ROW_MULTIPLE)


def _draft_rungs(num_slots: int, longest: int, narrowest: int) -> list[Rung]:
    full = row_capacity(num_slots * longest, narrowest)
    capacity = row_capacity(num_slots + 1, narrowest)
    rungs = []
    while capacity < full:
        rungs.append(Rung(capacity, longest))
        capacity *= 2
    return [*rungs, Rung(full, longest)]


def for_drafts(ladder: Sequence[Rung], draft_length: int) -> list[bool]:
    """Which rungs are for steps that read no prompt; all, where there are no others.

    Prompts are attended to in taller tiles, which cost more where each slot has few rows.
    """
    narrow = [rung.max_q_len <= draft_length + 1 for rung in ladder]
    return narrow if any(narrow) else [True] * len(narrow)


def first_fit(ladder: Sequence[Rung], q_lens: jax.Array, draft_length: int) -> jax.Array:
    """Index of the cheapest rung that holds rows of `q_lens` int32[B]; int32[].

    One for prompts only where no other one does.
    """
    capacities = jnp.asarray([rung.capacity for rung in ladder], jnp.int32)
    longest = jnp.asarray([rung.max_q_len for rung in ladder], jnp.int32)
    fits = (capacities >= q_lens.sum()) & (longest >= q_lens.max())
    narrow = fits & jnp.asarray(for_drafts(ladder, draft_length))
    return jnp.argmax(jnp.where(narrow.any(), narrow, fits)).astype(jnp.int32)
