"""The ladder: the few shapes that a step may take.

Shapes are fixed under `jit`, while the number of rows changes from step to step. A packed buffer as
large as the padded batch would cost as much as padding does. So the program contains several
capacities, the rungs, cheapest first, and each step runs on one of them.

This module imports no jax, so that forecasts need not wait for it.
"""

from collections.abc import Sequence
from typing import NamedTuple

from emsjax.limits import DRAFT_LENGTH, LONG_DRAFT_LENGTH
from emsjax.shapes import round_up

# Matrix units and vector registers handle this many rows at full speed; fewer rows save little.
ROW_MULTIPLE = 8
# The cache capacity of a slot is a multiple of this, as the cache blocks of every backend need.
CAPACITY_MULTIPLE = 256
# The single capacity of an `exact` ladder, unless another one is given.
EXACT_CAPACITY = 64


class Rung(NamedTuple):
    """One shape of a step.

    Attributes:
      capacity: T, the number of rows it holds.
      max_q_len: the most rows that one slot may have in it.
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
    """Returns the rungs, cheapest first.

    The first rung has one row per slot, for plain decoding. The next ones double in capacity until
    every slot's longest draft fits. Prefill chunks lie between and above them.

    Args:
      num_slots: B.
      draft_length: k; 0 if nothing is ever drafted.
      exact: use a single capacity, the same for every B up to it. Results are then equal bit for
        bit, whatever else is in the batch.
      exact_capacity: the single capacity, in rows. For a larger B, it is the next multiple of this
        number.
      narrowest: the fewest rows that are worth a rung, apart from a single row.
      prefill_chunk: the most rows of one prefill step, or a multiple of it if B slots and their
        drafts need more.
    """
    if exact:
        capacity = round_up(num_slots, exact_capacity)
        return (Rung(capacity, capacity),)
    plain = row_capacity(num_slots, narrowest)
    rungs = [Rung(plain, 1)]
    if draft_length > 0:
        rungs += _draft_rungs(num_slots, draft_length + 1, narrowest)
    # No narrower than the widest rung for drafts: a plan may fill the largest capacity with rows of
    # one prompt, and only a prefill rung lets one slot have that many.
    widest = round_up(max(2 * num_slots, rungs[-1].capacity), prefill_chunk)
    # Slots free up one by one, so prompts are read one by one, and short ones need less room.
    chunks = [chunk for chunk in (widest // 4, widest // 2, widest) if chunk > plain]
    return tuple(sorted([*rungs, *(Rung(chunk, chunk) for chunk in chunks)]))


def narrowest_rows(platform: str) -> int:
    """Returns the fewest rows, other than 1, for which compiling a program pays off.

    Args:
      platform: "cpu", "gpu" or "tpu".
    """
    return 4 if platform == "cpu" else ROW_MULTIPLE


def prompt_rows(platform: str) -> int:
    """Returns the most rows of a prompt that a step reads."""
    return 256 if platform == "cpu" else 512


def default_draft_length(platform: str, num_slots: int) -> int:
    """Returns k, the most tokens to draft for each of B slots, where nobody has chosen it.

    On a GPU or TPU a small step mostly reads the weights, so that more rows cost little. Drafts are
    longer there while the longest of all slots fit the rows that are there for prompts anyway.
    """
    fits = num_slots * (LONG_DRAFT_LENGTH + 1) <= prompt_rows(platform)
    return LONG_DRAFT_LENGTH if fits and platform != "cpu" else DRAFT_LENGTH


def ladder_for(
    platform: str, num_slots: int, draft_length: int, *, exact: bool = False
) -> tuple[Rung, ...]:
    """Returns the rungs that suit a platform, see `make_ladder`.

    On a CPU the time of a step grows with its rows. On a GPU or TPU a small step mostly reads the
    weights, so that narrower programs would save little.
    """
    cpu = platform == "cpu"
    return make_ladder(
        num_slots,
        draft_length,
        exact=exact,
        exact_capacity=16 if cpu else 64,
        narrowest=narrowest_rows(platform),
        prefill_chunk=prompt_rows(platform),
    )


def row_capacity(rows: int, narrowest: int) -> int:
    """Returns the smallest capacity that holds this many rows; a single row has its own."""
    if rows == 1:
        return 1
    return narrowest if rows <= narrowest else round_up(rows, ROW_MULTIPLE)


def _draft_rungs(num_slots: int, longest: int, narrowest: int) -> list[Rung]:
    """Returns doubling capacities, from one draft token up to `longest` rows in every slot."""
    full = row_capacity(num_slots * longest, narrowest)
    capacity = row_capacity(num_slots + 1, narrowest)
    rungs = []
    while capacity < full:
        rungs.append(Rung(capacity, longest))
        capacity *= 2
    return [*rungs, Rung(full, longest)]


def for_drafts(ladder: Sequence[Rung], draft_length: int) -> list[bool]:
    """Returns which rungs are for steps that read no prompt; all if every rung is for prompts.

    Attention on a rung for prompts uses taller tiles, which cost more if each slot has few rows.
    """
    narrow = [rung.max_q_len <= draft_length + 1 for rung in ladder]
    return narrow if any(narrow) else [True] * len(narrow)
