"""The job in a slot, what the host has seen of it, and the result that it becomes."""

import time
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np

from emsjax.engine.devices import here
from emsjax.engine.job import Finished, Job
from emsjax.engine.metrics import RequestMetrics
from emsjax.engine.state import DecodeState, SlotStats
from emsjax.engine.trace import Trace
from emsjax.engine.trace_record import steps_of
from emsjax.sampling.logprobs import Logprobs, of_slot


class Snapshot(NamedTuple):
    """The slots as the host sees them after a call; tokens only if the host needs them."""

    lens: np.ndarray
    kv_lens: np.ndarray
    live: np.ndarray
    stats: SlotStats
    tokens: np.ndarray | None
    time: float

    def output(self, slot: int, span: slice) -> np.ndarray:
        """Returns some tokens of a slot."""
        assert self.tokens is not None
        return self.tokens[slot, span]


@dataclass
class Occupant:
    """The job in a slot, and what the host has seen of it so far.

    Attributes:
      job: the job.
      started: when the job took the slot, by `time.perf_counter`.
      first_step: number of steps that the run had made by then.
      shared: how many tokens of the prompt have their K/V from another text in the cache.
      prompt_shared: whether these are all that another text can spare it.
      first_token: when the host saw the first token; None before.
      seen_tokens: tokens of the output that the host has seen.
      seen_steps: steps of the job that the host has counted.
      cut: whether the job's watch ended it.
      prompt_logprobs: see `Finished`.
    """

    job: Job
    started: float
    first_step: int
    shared: int
    prompt_shared: bool = False
    first_token: float | None = None
    seen_tokens: int = 0
    seen_steps: int = 0
    cut: bool = False
    prompt_logprobs: Logprobs | None = None

    def update(self, seen: Snapshot, slot: int, state: DecodeState) -> None:
        """Counts the new tokens, and lets the job's watch end the job after one of them."""
        first = len(self.job.prompt) + self.seen_tokens
        new, kept = int(seen.lens[slot]) - first, None
        if self.job.watch is not None and new:
            kept = self.job.watch(seen.output(slot, slice(first, first + new)).tolist())
        self.cut = kept is not None
        added = new if kept is None else kept
        if self.job.watch_logprobs is not None and added:
            found = _logprobs(self.job, state, slot, slice(first, first + added))
            assert found is not None
            self.job.watch_logprobs(found)
        self.seen_tokens += added
        if self.seen_tokens and self.first_token is None:
            self.first_token = seen.time


def take_snapshot(state: DecodeState, occupied: list[int], watched: bool) -> Snapshot:
    """Copies what the host needs from the device, after waiting for it."""
    lens, kv_lens, live, stats = jax.device_get(
        (state.lens, state.kv_lens, state.live, state.stats)
    )
    # Tokens are copied to the host only if a job has ended or its tokens are watched.
    wanted = watched or not live[occupied].all()
    tokens = np.asarray(state.tokens) if wanted else None
    return Snapshot(lens, kv_lens, live, stats, tokens, time.perf_counter())


def result_of(
    occupant: Occupant, seen: Snapshot, state: DecodeState, slot: int, began: float
) -> Finished:
    """Makes the result of a job that has ended.

    Args:
      occupant: the job, updated with the snapshot.
      seen: the snapshot.
      state: the state that the snapshot is of.
      slot: the job's slot.
      began: when the run began, by `time.perf_counter`.
    """
    job = occupant.job
    span = slice(len(job.prompt), len(job.prompt) + occupant.seen_tokens)
    logprobs = _logprobs(job, state, slot, span)
    tokens = tuple(seen.output(slot, span).tolist())
    steps = int(seen.stats.target_steps[slot])
    if occupant.cut:  # Steps after the cut are not counted.
        steps = int(here(state.emitted_at)[slot, span.stop - 1])
    metrics = _metrics(occupant, seen.stats, slot, steps)
    trace = _trace(occupant, seen, state, slot, began)
    # The device may run past the token after which the watch ended the job, and fail there.
    failed = bool(seen.stats.failed[slot]) and not occupant.cut
    return Finished(
        job, tokens, metrics, occupant.cut, failed, logprobs, trace, occupant.prompt_logprobs
    )


def _logprobs(job: Job, state: DecodeState, slot: int, span: slice) -> Logprobs | None:
    if not job.choice.settings.logprobs or state.sampling is None:
        return None
    return of_slot(here(state.sampling.logprobs), state.lens.shape[0], slot, span)


def _trace(
    occupant: Occupant, seen: Snapshot, state: DecodeState, slot: int, began: float
) -> Trace | None:
    if state.drafts is None or not occupant.job.traced:
        return None
    span = slice(len(occupant.job.prompt), int(seen.lens[slot]))
    emitted_at, drafts = jax.device_get((here(state.emitted_at)[slot], here(state.drafts)[slot]))
    return Trace(
        steps=steps_of(
            seen.output(slot, span), emitted_at[span], drafts[:, span], occupant.seen_tokens
        ),
        prefill_steps=int(seen.stats.prefill_steps[slot]),
        prompt_shared=occupant.prompt_shared,
        slot=slot,
        first_step=occupant.first_step,
        started=occupant.started - began,
        first_token=(occupant.first_token or seen.time) - began,
        finished=seen.time - began,
        run_began=began,
    )


def _metrics(occupant: Occupant, stats: SlotStats, slot: int, target_steps: int) -> RequestMetrics:
    drafted, accepted = stats.drafted[slot].tolist(), stats.accepted[slot].tolist()
    return RequestMetrics(
        target_steps=target_steps,
        drafted_tokens=sum(drafted),
        accepted_tokens=sum(accepted),
        emitted_tokens=occupant.seen_tokens,
        drafted_by_position=tuple(drafted),
        accepted_by_position=tuple(accepted),
        time_to_first_token=(occupant.first_token or occupant.started) - occupant.started,
        prefill_steps=int(stats.prefill_steps[slot]),
        cached_prompt_tokens=occupant.shared,
    )
