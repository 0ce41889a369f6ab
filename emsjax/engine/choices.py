"""Which packed rows emit a token, and the target's choices after them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from emsjax.engine.packing import NO_PARENT, Guesses, PackedBatch
from emsjax.engine.state import DecodeState
from emsjax.engine.step_plan import Plan
from emsjax.engine.tree import path_tokens
from emsjax.sampling.choose import Chosen
from emsjax.sampling.logprobs import empty_logprobs
from emsjax.sampling.rows import NO_TOKEN, Rows
from emsjax.shapes import round_up

# Rows whose logits are computed at a time in a step that reads prompts. This many cost little more
# than one, because the time goes into reading the weights.
_CHUNK = 32


class EmittingRows(NamedTuple):
    """The rows after which a slot's tokens are chosen.

    Attributes:
      places: int32[B, k+1], the row of the newest known token, then those of the draft tokens.
      emits: bool[B, k+1], whether the step needs a choice after the row.
    """

    places: jax.Array
    emits: jax.Array


def emitting_rows(cu_q_lens: jax.Array, plan: Plan, capacity: int, length: int) -> EmittingRows:
    """Finds the rows that can emit a token.

    Args:
      cu_q_lens: int32[B+1], the first row of each slot.
      plan: of the step.
      capacity: T, the number of rows.
      length: k+1, the most tokens that a slot can emit.
    """
    last_known = cu_q_lens[1:] - 1 - plan.pad_lens - plan.draft_lens
    steps = jnp.arange(length, dtype=jnp.int32)[None]
    places = jnp.clip(last_known[:, None] + steps, 0, capacity - 1)
    return EmittingRows(places, plan.complete[:, None] & (steps <= plan.draft_lens[:, None]))


def choose_in_chunks(
    choose_after: Callable[[jax.Array], Chosen], rows: EmittingRows, nothing: Chosen
) -> Chosen:
    """Chooses a token after each row that emits, a chunk of rows at a time.

    Logits of every row that might emit would cost a tenth of a step that reads prompts, in which
    few slots emit and few tokens are drafted (SmolLM2, 16 slots, on a CPU).

    Args:
      choose_after: returns the choices [W] after rows int32[W].
      rows: the rows.
      nothing: [B, k+1], what the result holds for rows without logits.
    """
    size = rows.places.size
    chunk = min(size, _CHUNK)
    padding = (0, round_up(size, chunk) - size)
    order = jnp.argsort(~rows.emits.ravel(), stable=True)
    sources = jnp.pad(rows.places.ravel()[order], padding)
    # Padding goes to a place that does not exist, which `set` leaves out.
    targets = jnp.pad(order, padding, constant_values=size)
    chunks = (rows.emits.sum(dtype=jnp.int32) + chunk - 1) // chunk

    def choose(done: jax.Array, chosen: Chosen) -> Chosen:
        source, target = (
            jax.lax.dynamic_slice(x, (done * chunk,), (chunk,)) for x in (sources, targets)
        )
        return jax.tree.map(lambda x, new: x.at[target].set(new), chosen, choose_after(source))

    flat = jax.tree.map(lambda x: x.reshape(size, *x.shape[2:]), nothing)
    with jax.named_scope("choose"):  # so that `plan` does not take it for a loop over layers
        flat = jax.lax.fori_loop(0, chunks, choose, flat)
    return jax.tree.map(lambda x: x.reshape(*rows.places.shape, *x.shape[1:]), flat)


def take(values: Any, index: jax.Array | None) -> Any:
    """Returns the entries of all arrays at an index; all of them, in place, if it is None."""
    return values if index is None else jax.tree.map(lambda x: x[index], values)


def prefixes_of(batch: PackedBatch, state: DecodeState, guesses: Guesses) -> Rows:
    """Returns the prefix that ends at each row of the batch; meaningless for unused rows."""
    slots = jnp.minimum(batch.slot_ids, state.lens.shape[0] - 1)
    # The token before a row is the row's parent if it is in this batch. It may be a draft token,
    # and the known text does not contain those.
    known = state.tokens[slots, jnp.maximum(batch.positions - 1, 0)]
    depth = batch.positions - state.lens[slots] + 1
    drafted, tree = guesses.tokens, guesses.tree
    if tree is None:
        place = jnp.arange(drafted.shape[1], dtype=jnp.int32)[None]
        path = jnp.where(place < depth[:, None], drafted[slots], NO_TOKEN)
    else:
        rows = jnp.arange(batch.tokens.shape[0], dtype=jnp.int32) - batch.cu_q_lens[slots]
        # A slot that reads its prompt has more rows than a tree, and no guesses.
        rows = jnp.where(depth > 0, jnp.minimum(rows, drafted.shape[1]), 0)
        path = path_tokens(tree, drafted)[slots, rows]
    return Rows(
        slots=slots,
        positions=batch.positions,
        tokens=batch.tokens,
        before=jnp.where(batch.parents == NO_PARENT, known, batch.tokens[batch.parents]),
        path=path,
    )


def following_tokens(
    batch: PackedBatch, state: DecodeState, rows: EmittingRows, chosen: jax.Array
) -> jax.Array:
    """Returns the token after each row, int32[T]: the known one, or the one chosen there.

    An accepted draft token is what was chosen after the row before it.

    Args:
      batch: the rows.
      state: before the step.
      rows: the rows that can emit.
      chosen: int32[B, k+1], the choices after these rows.
    """
    slots = jnp.minimum(batch.slot_ids, state.lens.shape[0] - 1)
    after = batch.positions + 1
    known = state.tokens[slots, jnp.minimum(after, state.tokens.shape[1] - 1)]
    number = jnp.arange(batch.tokens.shape[0], dtype=jnp.int32) - rows.places[slots, 0]
    new = chosen[slots, jnp.clip(number, 0, chosen.shape[1] - 1)]
    # Where nothing could be chosen, the slot ends.
    return jnp.maximum(jnp.where(after < state.lens[slots], known, new), 0)


def nothing_chosen(shape: tuple[int, ...], state: DecodeState) -> Chosen:
    """Returns zeros in the shape of the target's choices, which a step replaces."""
    logprobs = None if state.sampling is None else empty_logprobs(shape)
    return Chosen(jnp.zeros(shape, jnp.int32), logprobs)
