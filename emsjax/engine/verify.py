"""Verifying drafts, and committing the tokens that the target confirms."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from emsjax.engine.holes import Holes, align
from emsjax.engine.state import DecodeState, SlotStats
from emsjax.engine.step_plan import Plan, Planned
from emsjax.engine.trace_record import record_drafts
from emsjax.engine.tree import Tree
from emsjax.sampling.choose import Chosen
from emsjax.sampling.logprobs import record
from emsjax.sampling.rows import NO_TOKEN
from emsjax.sampling.state import SamplingState, note_tokens


class Verdict(NamedTuple):
    """What the target's choices say about the draft tokens of a step.

    Attributes:
      accepted: int32[B], how many are accepted: the length of the accepted path.
      right: bool[B, k], which ones are accepted.
      tried: bool[B, k], which ones follow an accepted prefix, so that the target could tell. After
        a wrong token, the rest of a draft shows nothing.
      path: int32[B, k+1], the row of the newest known token in its slot, which is 0, and those of
        the accepted tokens, in order; the rest means nothing. None if drafts are chains, whose
        accepted tokens come first.
    """

    accepted: jax.Array
    right: jax.Array
    tried: jax.Array
    path: jax.Array | None = None


def verify(
    tokens: jax.Array, draft_lens: jax.Array, predicted: jax.Array, tree: Tree | None = None
) -> Verdict:
    """Finds the draft tokens that the target would have chosen itself.

    Args:
      tokens: int32[B, k], the guesses.
      draft_lens: int32[B], how many of them were verified.
      predicted: int32[B, k+1], the target's choices after the known tokens and after each guess. A
        choice of `NO_TOKEN` equals no draft token.
      tree: of the guesses; None if they are chains.
    """
    position = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    there = position < draft_lens[:, None]
    if tree is not None:
        return _verify_tree(tree, tokens, there, predicted)
    hit = (tokens == predicted[:, :-1]) & there
    # A choice after a wrong draft token belongs to another text, so later hits do not count.
    accepted = jnp.cumprod(hit, axis=1, dtype=jnp.int32).sum(axis=1, dtype=jnp.int32)
    right = position < accepted[:, None]
    return Verdict(accepted, right, there & (position <= accepted[:, None]))


def _verify_tree(tree: Tree, tokens: jax.Array, there: jax.Array, predicted: jax.Array) -> Verdict:
    """Implements `verify`: a guess is accepted if every guess on its path is a hit."""
    hit = (tokens == jnp.take_along_axis(predicted, tree.parents[:, 1:], axis=1)) & there
    bits = jnp.uint32(1) << jnp.arange(tree.paths.shape[1], dtype=jnp.uint32)
    # The root is known text, so it counts as a hit.
    hits = jnp.where(jnp.pad(hit, ((0, 0), (1, 0)), constant_values=True), bits[None], 0)
    hits = hits.sum(axis=1, dtype=jnp.uint32)[:, None]
    alive = (tree.paths & ~hits) == 0
    accepted = jnp.where(alive, tree.depths, 0).max(axis=1)
    # Guesses with the same parent differ, so at most one row of each depth is alive.
    depth = jnp.arange(bits.shape[0], dtype=jnp.int32)[None, :, None]
    at_depth = alive[:, None] & (tree.depths[:, None] == depth)
    path = jnp.argmax(at_depth, axis=2).astype(jnp.int32)
    tried = there & jnp.take_along_axis(alive, tree.parents[:, 1:], axis=1)
    return Verdict(accepted, alive[:, 1:], tried, path)


def commit(state: DecodeState, planned: Planned, verdict: Verdict, chosen: Chosen) -> DecodeState:
    """Appends the accepted tokens and the bonus token, cut exactly at stop tokens and limits.

    A slot whose next choice is `NO_TOKEN` fails: it keeps the tokens before and ends.
    K/V of rejected tokens stay in the cache past `kv_lens`, where the next rows overwrite them.

    Args:
      state: before the step, except for the cache, which holds the step's K/V.
      planned: the guesses and the plan of the step.
      verdict: see `verify`.
      chosen: [B, k+1], the target's choices after the known tokens and after each guess. Those
        along the accepted path are emitted: an accepted draft token equals the choice in its place,
        and the next choice is the bonus token.
    """
    plan = planned.plan
    accepted, chosen = verdict.accepted, along(verdict.path, chosen)
    predicted = chosen.tokens
    steps = jnp.arange(predicted.shape[1], dtype=jnp.int32)[None]
    chosen_none = predicted == NO_TOKEN
    # `stop_ids` are padded with -1, which `NO_TOKEN` equals.
    is_stop = (predicted[:, :, None] == state.stop_ids[:, None, :]).any(axis=2) & ~chosen_none
    offered = jnp.minimum(accepted + 1, state.max_lens - state.lens)
    # Choices past the offered ones may contain stop tokens that the text never reaches.
    stopping = is_stop & (steps < offered[:, None]) & plan.complete[:, None]
    stopped = stopping.any(axis=1)
    emitted = jnp.where(stopped, jnp.argmax(stopping, axis=1).astype(jnp.int32) + 1, offered)
    emitted = jnp.where(plan.complete, emitted, 0)
    # No accepted token is `NO_TOKEN`, so only the last emitted choice can be.
    failed = (chosen_none & (steps < emitted[:, None])).any(axis=1)
    emitted -= failed.astype(jnp.int32)
    lens = state.lens + emitted
    step = jnp.broadcast_to(state.stats.target_steps[:, None] + 1, predicted.shape)
    return state.replace(
        tokens=_append(state.tokens, state.lens, predicted, emitted),
        emitted_at=_append(state.emitted_at, state.lens, step, emitted),
        lens=lens,
        # The bonus token was not among the step's rows, so it has no K/V yet.
        kv_lens=jnp.where(plan.complete, lens - 1, state.kv_lens + plan.q_lens),
        live=state.live & ~stopped & ~failed & (lens < state.max_lens),
        stats=_count(state, planned, accepted, emitted, failed),
        sampling=_record_sampling(state.sampling, chosen, state.lens, emitted),
        holes=_aligned(state, plan, lens),
        drafts=_record_drafts(state, planned, verdict),
    )


def along(path: jax.Array | None, of_rows: Any) -> Any:
    """Returns what belongs to the rows of a path, from arrays [B, k+1, ...] of all rows."""
    if path is None:
        return of_rows
    return jax.tree.map(lambda x: jax.vmap(lambda rows, index: rows[index])(x, path), of_rows)


def _aligned(state: DecodeState, plan: Plan, lens: jax.Array) -> Holes | None:
    """Returns the holes that make all decoding slots' caches grow by the same length.

    A slot that still read its prompt in this step is left out.
    """
    if state.holes is None:
        return None
    grown = lens - state.lens
    return align(state.holes, lens - 1, grown, _decoding(state, plan), state.max_lens)


def _record_drafts(state: DecodeState, planned: Planned, verdict: Verdict) -> jax.Array | None:
    """Adds the step's verified draft tokens to the record for traces, if there is one.

    Of a tree, it holds the accepted path and the likeliest guess after it.
    """
    if state.drafts is None:
        return None
    plan, tree = planned.plan, planned.tree
    tokens, lens = planned.draft.tokens, plan.draft_lens
    if tree is not None:
        assert verdict.path is not None
        wrong = verdict.tried & ~verdict.right
        # Guesses are sorted by survival. Those that follow the last accepted one come later in it.
        after = wrong & (tree.depths[:, 1:] == verdict.accepted[:, None] + 1)
        guess = jnp.where(after.any(axis=1), jnp.argmax(after, axis=1) + 1, 0)
        rows = verdict.path[:, 1:]
        position = jnp.arange(rows.shape[1], dtype=jnp.int32)[None]
        rows = jnp.where(position == verdict.accepted[:, None], guess[:, None], rows)
        tokens = jnp.take_along_axis(tokens, jnp.maximum(rows - 1, 0), axis=1)
        lens = verdict.accepted + after.any(axis=1).astype(jnp.int32)
    return record_drafts(state.drafts, tokens, state.lens, lens, plan.complete)


def _decoding(state: DecodeState, plan: Plan) -> jax.Array:
    """Returns which slots, bool[B], emit and had read their whole prompt before this step."""
    return plan.complete & (state.lens - state.kv_lens == 1)


def _record_sampling(
    sampling: SamplingState | None, chosen: Chosen, lens: jax.Array, emitted: jax.Array
) -> SamplingState | None:
    """Records the emitted tokens for penalties, and their log-probabilities."""
    if sampling is None or chosen.logprobs is None:
        return None
    sampling = note_tokens(sampling, chosen.tokens, emitted)
    return sampling.replace(logprobs=record(sampling.logprobs, chosen.logprobs, lens, emitted))


def _append(tokens: jax.Array, lens: jax.Array, new: jax.Array, count: jax.Array) -> jax.Array:
    """Writes the first `count[b]` of `new` int32[B, n] to tokens int32[B, S] from `lens[b]` on."""
    num_slots, capacity = tokens.shape
    steps = jnp.arange(new.shape[1], dtype=jnp.int32)[None]
    # Column S does not exist, so that `mode="drop"` skips what is not emitted.
    columns = jnp.where(steps < count[:, None], lens[:, None] + steps, capacity)
    slots = jnp.arange(num_slots, dtype=jnp.int32)[:, None]
    return tokens.at[slots, columns].set(new, mode="drop")


def _count(
    state: DecodeState,
    planned: Planned,
    accepted: jax.Array,
    emitted: jax.Array,
    failed: jax.Array,
) -> SlotStats:
    """Adds this step to the counters.

    Args:
      state: before the step.
      planned: the guesses and the plan of the step.
      accepted: int32[B], see `Verdict`.
      emitted: int32[B], the tokens emitted. Accepted tokens that were cut off do not count, nor do
        the drafts of a step that failed before its first token.
      failed: bool[B], see `commit`.
    """
    stats, plan = state.stats, planned.plan
    position = jnp.arange(stats.drafted.shape[1], dtype=jnp.int32)[None]
    emitting = emitted > 0
    accepted = jnp.minimum(accepted, emitted)
    decoding = _decoding(state, plan)
    holes = jnp.zeros_like(state.lens) if state.holes is None else state.holes.counts
    events = {
        "target_steps": emitting,
        # A step that failed before the first token has only read the prompt.
        "prefill_steps": state.live & (stats.target_steps == 0) & ~emitting,
        "drafted": jnp.where(emitting[:, None], _by_depth(planned), 0),
        "accepted": position < accepted[:, None],
        "rows": jnp.where(decoding, plan.q_lens, 0),
        "padded": plan.pad_lens,
        "cached": jnp.where(decoding, state.kv_lens + holes, 0),
        "empty": jnp.where(decoding, holes, 0),
        "failed": failed,
    }
    before = {name: getattr(stats, name) for name in events}
    counted = {name: before[name] + e.astype(before[name].dtype) for name, e in events.items()}
    return dataclasses.replace(stats, **counted)


def _by_depth(planned: Planned) -> jax.Array:
    """Counts the verified guesses of each depth, int32[B, k]."""
    position = jnp.arange(planned.likely.shape[1], dtype=jnp.int32)[None]
    there = position < planned.plan.draft_lens[:, None]
    tree = planned.tree
    if tree is None:
        return there.astype(jnp.int32)
    at_depth = tree.depths[:, 1:, None] - 1 == position[:, None]
    return (there[..., None] & at_depth).sum(axis=1, dtype=jnp.int32)
