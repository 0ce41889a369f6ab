"""Verifying drafts and committing what the target confirms."""

import dataclasses

import jax
import jax.numpy as jnp

from emsjax.engine.draft import Draft
from emsjax.engine.holes import Holes, align
from emsjax.engine.state import DecodeState, SlotStats
from emsjax.engine.step_plan import Plan
from emsjax.engine.trace_record import record_drafts
from emsjax.sampling.choose import Chosen
from emsjax.sampling.logprobs import record
from emsjax.sampling.state import SamplingState, count_tokens


def count_accepted(draft: Draft, draft_lens: jax.Array, predicted: jax.Array) -> jax.Array:
    """How many draft tokens the target chose itself.

    Args:
      draft: the guesses, [B, k].
      draft_lens: int32[B], how many of them were verified.
      predicted: int32[B, k+1], the target's choice after the known tokens and after each guess.

    Returns:
      int32[B], the length of the longest confirmed beginning.
    """
    position = jnp.arange(draft.tokens.shape[1], dtype=jnp.int32)[None]
    hit = (draft.tokens == predicted[:, :-1]) & (position < draft_lens[:, None])
    return jnp.cumprod(hit, axis=1, dtype=jnp.int32).sum(axis=1, dtype=jnp.int32)


def commit(
    state: DecodeState, draft: Draft, plan: Plan, accepted: jax.Array, chosen: Chosen
) -> DecodeState:
    """Appends accepted and bonus tokens, cut exactly at stop tokens and limits.

    Rejected tokens leave K/V behind `kv_lens`, to be overwritten.

    Args:
      state: before the step, with the step's cache.
      draft: the guesses.
      plan: of the step.
      accepted: int32[B], see `count_accepted`.
      chosen: [B, k+1]; the first `accepted + 1` are emitted.
    """
    predicted = chosen.tokens
    steps = jnp.arange(predicted.shape[1], dtype=jnp.int32)[None]
    is_stop = (predicted[:, :, None] == state.stop_ids[:, None, :]).any(axis=2)
    offered = jnp.minimum(accepted + 1, state.max_lens - state.lens)
    stopping = is_stop & (steps < offered[:, None]) & plan.complete[:, None]
    stopped = stopping.any(axis=1)
    emitted = jnp.where(stopped, jnp.argmax(stopping, axis=1).astype(jnp.int32) + 1, offered)
    emitted = jnp.where(plan.complete, emitted, 0)
    lens = state.lens + emitted
    step = jnp.broadcast_to(state.stats.target_steps[:, None] + 1, predicted.shape)
    return state.replace(
        tokens=_append(state.tokens, state.lens, predicted, emitted),
        emitted_at=_append(state.emitted_at, state.lens, step, emitted),
        lens=lens,
        kv_lens=jnp.where(plan.complete, lens - 1, state.kv_lens + plan.q_lens),
        live=state.live & ~stopped & (lens < state.max_lens),
        stats=_count(state, plan, jnp.minimum(accepted, emitted)),
        sampling=_note(state.sampling, chosen, state.lens, emitted),
        holes=_aligned(state, plan, lens),
        drafts=_recorded(state, draft, plan),
    )


def _aligned(state: DecodeState, plan: Plan, lens: jax.Array) -> Holes | None:
    """The holes that keep the slots' caches growing together; prompts are read alone."""
    if state.holes is None:
        return None
    grown = lens - state.lens
    return align(state.holes, lens - 1, grown, _decoding(state, plan), state.max_lens)


def _recorded(state: DecodeState, draft: Draft, plan: Plan) -> jax.Array | None:
    """What was drafted, for those who want to see it."""
    if state.drafts is None:
        return None
    return record_drafts(state.drafts, draft.tokens, state.lens, plan.draft_lens, plan.complete)


def _decoding(state: DecodeState, plan: Plan) -> jax.Array:
    """The slots bool[B] that emit without any of their prompt left to read."""
    return plan.complete & (state.lens - state.kv_lens == 1)


def _note(
    sampling: SamplingState | None, chosen: Chosen, lens: jax.Array, emitted: jax.Array
) -> SamplingState | None:
    """What penalties and log-probabilities need to know of the emitted tokens."""
    if sampling is None or chosen.logprobs is None:
        return None
    sampling = count_tokens(sampling, chosen.tokens, emitted)
    return sampling.replace(logprobs=record(sampling.logprobs, chosen.logprobs, lens, emitted))


def _append(tokens: jax.Array, lens: jax.Array, new: jax.Array, count: jax.Array) -> jax.Array:
    """tokens int32[B, S] with `count[b]` of `new` int32[B, n] written from `lens[b]` on."""
    num_slots, capacity = tokens.shape
    steps = jnp.arange(new.shape[1], dtype=jnp.int32)[None]
    columns = jnp.where(steps < count[:, None], lens[:, None] + steps, capacity)
    slots = jnp.arange(num_slots, dtype=jnp.int32)[:, None]
    return tokens.at[slots, columns].set(new, mode="drop")


def _count(state: DecodeState, plan: Plan, accepted: jax.Array) -> SlotStats:
    stats = state.stats
    position = jnp.arange(stats.drafted.shape[1], dtype=jnp.int32)[None]
    emitting = plan.complete[:, None]
    decoding = _decoding(state, plan)
    holes = jnp.zeros_like(state.lens) if state.holes is None else state.holes.counts
    events = {
        "target_steps": plan.complete,
        "prefill_steps": state.live & ~plan.complete,
        "drafted": position < plan.draft_lens[:, None],
        "accepted": emitting & (position < accepted[:, None]),
        "rows": jnp.where(decoding, plan.q_lens, 0),
        "padded": plan.pad_lens,
        "cached": jnp.where(decoding, state.kv_lens + holes, 0),
        "empty": jnp.where(decoding, holes, 0),
    }
    before = {name: getattr(stats, name) for name in events}
    counted = {name: before[name] + e.astype(before[name].dtype) for name, e in events.items()}
    return dataclasses.replace(stats, **counted)
