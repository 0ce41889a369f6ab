"""The contenders of the benchmark: a method with a drafter, compiled for one batch size."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import numpy as np

from emsjax.bench.decoding import FAILED, Decoding, Run
from emsjax.bench.simulated import LONGEST, Simulated
from emsjax.bench.target import Target
from emsjax.bench.whole_job import Served
from emsjax.build_drafter import build_drafter, check_drafting, takers
from emsjax.build_engine import build_engine
from emsjax.costs.table import known_costs
from emsjax.drafters import NoDrafter
from emsjax.engine.drafter import Drafter
from emsjax.engine.engine import Engine
from emsjax.engine.job import Job
from emsjax.engine.ladder import CAPACITY_MULTIPLE
from emsjax.engine.metrics import together
from emsjax.engine.policy import POLICIES
from emsjax.engine.step_costs import StepCosts
from emsjax.errors import UserError, check_whole
from emsjax.pallas_kernels.backends import noting_backends
from emsjax.shapes import round_up

PLAIN, EMS, FIXED, SIMULATED = "none", "ems", "ems-fixed", "simulated"
METHODS = (*POLICIES, FIXED)


class Spec(NamedTuple):
    """The name of a contender.

    Attributes:
      method: one of `METHODS`; "ems" plans what to verify, all others verify every draft.
      drafter: a drafter's name, `PLAIN` for plain decoding. "NAME@K" drafts at most K tokens at
        once.
    """

    method: str
    drafter: str = PLAIN

    @property
    def label(self) -> str:
        """The name as reports and plots show it."""
        return self.method if self.drafter == PLAIN else f"{self.method}, {self.drafter}"

    @property
    def planned(self) -> bool:
        """Whether a planner chooses which draft tokens to verify."""
        return self.method == EMS and self.drafter != PLAIN

    @property
    def aligned(self) -> bool:
        """Whether the method leaves holes in its cache."""
        return self.method in POLICIES and POLICIES[self.method].align_cache

    @property
    def drafter_name(self) -> str:
        """The drafter's name without "@K"."""
        return self.drafter.partition("@")[0]

    @property
    def draft_length(self) -> int | None:
        """The K of "NAME@K"; None if there is none."""
        length = self.drafter.partition("@")[2]
        return int(length) if length else None


def check_spec(spec: Spec) -> None:
    """Checks a contender's name before anything is loaded.

    Raises:
      UserError: the method or the drafter is unknown, or the draft length is not valid.
    """
    if spec.method not in METHODS:
        raise UserError(
            f"method {spec.method!r} is unknown; use one or more of {', '.join(METHODS)}"
        )
    _, at, length = spec.drafter.partition("@")
    if at and not (length.isdecimal() and int(length)):
        raise UserError(
            f"drafter {spec.drafter!r} has no number of tokens after the @; write NAME@K, "
            "such as prompt-lookup@4"
        )
    if spec.drafter_name == SIMULATED:
        check_whole("draft length", spec.draft_length or 1, 1, LONGEST)
    else:
        check_drafting(EMS, spec.drafter_name, {"draft_length": spec.draft_length})


@dataclass
class Contender:
    """A compiled engine.

    Attributes:
      spec: its name.
      engine: an engine of B slots.
      compile_seconds: compile time of its decode program; short if the compile cache has it.
      peak_memory_bytes: memory of that program: weights, cache, state and temporaries. A method
        that leaves no holes is not charged the room for them. None if the compiler does not
        report it.
      attention: the backend of its attention; None if unknown.
    """

    spec: Spec
    engine: Engine
    compile_seconds: float
    peak_memory_bytes: int | None
    attention: str | None = None

    def prefill(self, jobs: Sequence[Job]) -> tuple[jax.Array, float]:
        """Reads the jobs' prompts; returns the cache that holds them and the seconds it took."""
        state = jax.block_until_ready(self.engine.empty())
        # The first token comes with the prompt's last row, so one token takes no step but prefill.
        short = [replace(job, max_tokens=1) for job in jobs]
        reading = Decoding(self.engine, state, short, read=False)
        reading.finish()
        return reading.state.cache, reading.seconds

    def begin(self, cache: jax.Array, jobs: Sequence[Job]) -> Decoding:
        """Starts the decoding of prompts that are in the cache, and consumes the cache.

        Args:
          cache: of B slots.
          jobs: the jobs whose prompts it holds, slot by slot.
        """
        return Decoding(self.engine, self.engine.around(cache), jobs, read=True)

    def decode(
        self, cache: jax.Array, jobs: Sequence[Job], prefill: float = 0.0
    ) -> tuple[jax.Array, Run]:
        """Writes all texts of the jobs.

        Args:
          cache: of B slots; consumed.
          jobs: the jobs whose prompts it holds, slot by slot.
          prefill: seconds that reading the prompts took, for the record.

        Returns:
          The cache, which still holds the prompts, and the run.
        """
        writing = self.begin(cache, jobs)
        writing.finish()
        return writing.state.cache, writing.run(prefill)

    def serve(self, jobs: Sequence[Job]) -> Served:
        """Reads the jobs' prompts and writes their texts, as `LLM` does.

        The engine keeps its cache for the next call.

        Args:
          jobs: more than the engine has slots, or fewer.

        Raises:
          UserError: the model failed on a prompt, so that the figures would mean nothing.
        """
        numbered = [replace(job, key=number) for number, job in enumerate(jobs)]
        started = time.perf_counter()
        finished = [each for each in self.engine.run(numbered) if each is not None]
        seconds = time.perf_counter() - started
        if any(each.failed for each in finished):
            raise UserError(FAILED)
        texts = {each.job.key: each.token_ids for each in finished}
        total = together([each.metrics for each in finished])
        counts = {
            "target_steps": np.asarray(total.target_steps),
            "drafted": np.asarray(total.drafted_by_position),
            "accepted": np.asarray(total.accepted_by_position),
        }
        return Served(seconds, [texts[number] for number in range(len(jobs))], counts)


def start(
    spec: Spec, target: Target, batch_size: int, max_model_len: int, room: int = 0
) -> Contender:
    """Builds and compiles a contender.

    Args:
      spec: its name.
      target: the model.
      batch_size: B.
      max_model_len: the most tokens of a sample.
      room: further places of each slot's cache, for holes.

    Raises:
      UserError: it does not fit in memory, or the drafter does not fit the model.
    """
    engine = _engine(spec, target, batch_size, max_model_len, room)
    if spec.planned:
        # An engine with costs runs another program. Its compilation does not depend on the values,
        # so it need not wait for the real ones, which are measured below.
        free = np.zeros(len(engine.ladder), np.float32)
        engine.use_costs(StepCosts(free + 1, free, np.float32(0)))
    started = time.perf_counter()
    with noting_backends() as picked:
        compiled = engine.lower().compile()
    seconds = time.perf_counter() - started
    memory = _memory(compiled)
    if memory is not None and not spec.aligned:
        memory -= _bytes_of(engine, engine.capacity - round_up(max_model_len, CAPACITY_MULTIPLE))
    if spec.planned:
        engine.use_costs(_costs(engine, target.name))
    return Contender(spec, engine, seconds, memory, picked.get("ragged_attention"))


def _costs(engine: Engine, name: str) -> StepCosts:
    """The costs of the engine's steps.

    A table decides where simulated drafts come, and a wide step could be timed with nothing to
    verify. So their costs are measured with a draft at every place.
    """
    drafter = engine.drafter
    if not isinstance(drafter, Simulated):
        return known_costs(engine, name)
    engine.use_drafter(drafter.always())
    try:
        return known_costs(engine, name)
    finally:
        engine.use_drafter(drafter)


def _engine(spec: Spec, target: Target, batch_size: int, max_model_len: int, room: int) -> Engine:
    return build_engine(
        target.model,
        drafter_of(spec, target),
        name=target.name,
        max_batch_size=batch_size,
        max_model_len=max_model_len + room,
        method=EMS if spec.method == FIXED else spec.method,
        **target.options,
    )


def drafter_of(spec: Spec, target: Target) -> Drafter:
    """Returns the contender's drafter, loaded once for all methods.

    Raises:
      UserError: the drafter cannot be loaded, or does not fit the target.
    """
    if PLAIN in (spec.method, spec.drafter):
        return NoDrafter()
    if spec.drafter not in target.drafters:
        target.drafters[spec.drafter] = _drafter(spec, target)
    return target.drafters[spec.drafter]


def _drafter(spec: Spec, target: Target) -> Drafter:
    if target.forced is not None:
        length = spec.draft_length or target.forced.draft_length
        return Simulated(target.forced.acceptance, target.model.vocab_size, length)
    options = {
        "draft_length": spec.draft_length,
        "draft_model": target.draft_model,
        "draft_quantize": target.draft_quantize,
    }
    if spec.drafter_name not in takers("draft_model"):
        options |= {"draft_model": None, "draft_quantize": None}
    assert target.loaded is not None
    drafting = check_drafting(EMS, spec.drafter_name, options)
    return build_drafter(drafting, target.loaded, target.dtype)


def _bytes_of(engine: Engine, places: int) -> int:
    """Bytes of `places` places of each slot's cache, over all slots, draft model included."""
    own = jax.eval_shape(lambda: engine.drafter.init(engine.num_slots, engine.capacity))
    # Of a drafter's state, only a K/V cache [L, B, S, R, 128] has five axes.
    target = jax.tree.leaves(engine.cache_spec)
    caches = [*target, *(part for part in jax.tree.leaves(own) if part.ndim == 5)]
    held = sum(math.prod(cache.shape) * cache.dtype.itemsize for cache in caches)
    return held * places // engine.capacity


def _memory(compiled: jax.stages.Compiled) -> int | None:
    """Bytes that a program holds while it runs; donated arguments count once."""
    memory = compiled.memory_analysis()
    if memory is None:
        return None
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return int(held - memory.alias_size_in_bytes + memory.temp_size_in_bytes)
