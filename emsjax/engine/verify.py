"""Verifying drafts, and committing the tokens that the target confirms."""

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
from emsjax.sampling.rows import NO_TOKEN
from emsjax.sampling.state import SamplingState, count_tokens


def count_accepted(draft: Draft, draft_lens: jax.Array, predicted: jax.Array) -> jax.Array:
    """Counts the draft tokens, from the first on, that the target would have chosen itself.

    Args:
      draft: the guesses, [B, k].
      draft_lens: int32[B], how many of them were verified.
      predicted: int32[B, k+1], the target's choices after the known tokens and after each guess.

    Returns:
      int32[B], the length of the longest prefix of each draft that equals the target's choices. A
      choice of `NO_TOKEN` equals no draft token.
    """
    position = jnp.arange(draft.tokens.shape[1], dtype=jnp.int32)[None]
    hit = (draft.tokens == predicted[:, :-1]) & (position < draft_lens[:, None])
    # A choice after a wrong draft token belongs to another text, so later hits do not count.
    return jnp.cumprod(hit, axis=1, dtype=jnp.int32).sum(axis=1, dtype=jnp.int32)


def commit(
    state: DecodeState, draft: Draft, plan: Plan, accepted: jax.Array, chosen: Chosen
) -> DecodeState:
    """Appends the accepted tokens and the bonus token, cut exactly at stop tokens and limits.

    A slot whose next choice is `NO_TOKEN` fails: it keeps the tokens before and ends.
    K/V of rejected tokens stay in the cache past `kv_lens`, where the next rows overwrite them.

    Args:
      state: before the step, except for the cache, which holds the step's K/V.
      draft: the guesses.
      plan: of the step.
      accepted: int32[B], see `count_accepted`.
      chosen: [B, k+1], the target's choices. The first `accepted + 1` are emitted: an accepted
        draft token equals the choice in its place, and the next choice is the bonus token.
    """
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
        stats=_count(state, plan, accepted, emitted, failed),
        sampling=_record_sampling(state.sampling, chosen, state.lens, emitted),
        holes=_aligned(state, plan, lens),
        drafts=_record_drafts(state, draft, plan),
    )


def _aligned(state: DecodeState, plan: Plan, lens: jax.Array) -> Holes | None:
    """Returns the holes that make all decoding slots' caches grow by the same length.

    A slot that still read its prompt in this step is left out.
    """
    if state.holes is None:
        return None
    grown = lens - state.lens
    return align(state.holes, lens - 1, grown, _decoding(state, plan), state.max_lens)


def _record_drafts(state: DecodeState, draft: Draft, plan: Plan) -> jax.Array | None:
    """Adds the step's verified draft tokens to the record for traces, if there is one."""
    if state.drafts is None:
        return None
    return record_drafts(state.drafts, draft.tokens, state.lens, plan.draft_lens, plan.complete)


def _decoding(state: DecodeState, plan: Plan) -> jax.Array:
    """Returns which slots, bool[B], emit and had read their whole prompt before this step."""
    return plan.complete & (state.lens - state.kv_lens == 1)


def _record_sampling(
    sampling: SamplingState | None, chosen: Chosen, lens: jax.Array, emitted: jax.Array
) -> SamplingState | None:
    """Records the emitted tokens for penalties, and their log-probabilities."""
    if sampling is None or chosen.logprobs is None:
        return None
    sampling = count_tokens(sampling, chosen.tokens, emitted)
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
    state: DecodeState, plan: Plan, accepted: jax.Array, emitted: jax.Array, failed: jax.Array
) -> SlotStats:
    """Adds this step to the counters.

    Args:
      state: before the step.
      plan: of the step.
      accepted: int32[B], see `count_accepted`.
      emitted: int32[B], the tokens emitted. Accepted tokens that were cut off do not count, nor do
        the drafts of a step that failed before its first token.
      failed: bool[B], see `commit`.
    """
    stats = state.stats
    position = jnp.arange(stats.drafted.shape[1], dtype=jnp.int32)[None]
    emitting = emitted > 0
    accepted = jnp.minimum(accepted, emitted)
    decoding = _decoding(state, plan)
    holes = jnp.zeros_like(state.lens) if state.holes is None else state.holes.counts
    events = {
        "target_steps": emitting,
        # A step that failed before the first token has only read the prompt.
        "prefill_steps": state.live & (stats.target_steps == 0) & ~emitting,
        "drafted": emitting[:, None] & (position < plan.draft_lens[:, None]),
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
