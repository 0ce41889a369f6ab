"""What is compared: a method with a drafter, at one batch size."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import numpy as np

from emsjax.bench.decoding import Decoding, Run
from emsjax.bench.simulated import LONGEST, Simulated
from emsjax.bench.target import Target
from emsjax.build_drafter import build_drafter, check_drafting, takers
from emsjax.build_engine import CAPACITY_MULTIPLE, build_engine
from emsjax.costs.table import known_costs
from emsjax.drafters import NoDrafter
from emsjax.engine.drafter import Drafter
from emsjax.engine.engine import Engine
from emsjax.engine.job import Job
from emsjax.engine.policy import POLICIES
from emsjax.engine.worth import StepCosts
from emsjax.errors import UserError, check_whole
from emsjax.pallas_kernels.backends import noting_backends
from emsjax.shapes import round_up

PLAIN, EMS, FIXED, SIMULATED = "none", "ems", "ems-fixed", "simulated"
METHODS = (*POLICIES, FIXED)


class Spec(NamedTuple):
    """What a contender is called.

    Attributes:
      method: one of `METHODS`; "ems" plans, all others verify every draft.
      drafter: a drafter's name; with "@" and a number behind it at most so many tokens are drafted
        at once. Nothing for plain decoding.
    """

    method: str
    drafter: str = PLAIN

    @property
    def planned(self) -> bool:
        """Whether only drafts that are worth it are verified."""
        return self.method == EMS and self.drafter != PLAIN

    @property
    def aligned(self) -> bool:
        """Whether its cache gets holes."""
        return self.method in POLICIES and POLICIES[self.method].align_cache

    @property
    def drafter_name(self) -> str:
        """What is before the "@"."""
        return self.drafter.partition("@")[0]

    @property
    def draft_length(self) -> int | None:
        """The number behind the "@"."""
        length = self.drafter.partition("@")[2]
        return int(length) if length else None


def check_spec(spec: Spec) -> None:
    """Before anything is loaded.

    Raises:
      UserError: the method or the drafter is unknown.
    """
    if spec.method not in METHODS:
        raise UserError(f"method {spec.method!r} is unknown; there is {', '.join(METHODS)}")
    _, at, length = spec.drafter.partition("@")
    if at and not (length.isdecimal() and int(length)):
        raise UserError(f"drafter {spec.drafter!r}: behind the @ belongs a number of tokens")
    if spec.drafter_name == SIMULATED:
        check_whole("draft length", spec.draft_length or 1, 1, LONGEST)
    else:
        check_drafting(EMS, spec.drafter_name, {"draft_length": spec.draft_length})


@dataclass
class Contender:
    """A compiled engine.

    Attributes:
      spec: what it is called.
      engine: of B slots.
      compile_seconds: of its decode program; little where it was compiled before.
      peak_memory_bytes: of that program: weights, cache, state and temporaries, without the room
        for holes where it makes none; None where the compiler does not tell.
      attention: the backend that it attends with; None where not known.
    """

    spec: Spec
    engine: Engine
    compile_seconds: float
    peak_memory_bytes: int | None
    attention: str | None = None

    def prefill(self, jobs: Sequence[Job]) -> tuple[jax.Array, float]:
        """A cache that holds the jobs' prompts, and the seconds that reading them takes."""
        state = jax.block_until_ready(self.engine.empty())
        short = [replace(job, max_tokens=1) for job in jobs]
        reading = Decoding(self.engine, state, short, read=False)
        reading.to_its_end()
        return reading.state.cache, reading.seconds

    def begin(self, cache: jax.Array, jobs: Sequence[Job]) -> Decoding:
        """The writing of texts whose prompts are in the cache, which is used up.

        Args:
          cache: of B slots.
          jobs: whose prompts it holds, slot by slot.
        """
        return Decoding(self.engine, self.engine.around(cache), jobs, read=True)

    def decode(
        self, cache: jax.Array, jobs: Sequence[Job], prefill: float = 0.0
    ) -> tuple[jax.Array, Run]:
        """Writes all texts; see `begin`. The cache is given back.

        Args:
          cache: of B slots.
          jobs: whose prompts it holds, slot by slot.
          prefill: what reading them took, for the record.
        """
        writing = self.begin(cache, jobs)
        writing.to_its_end()
        return writing.state.cache, writing.run(prefill)


def start(
    spec: Spec, target: Target, batch_size: int, max_model_len: int, room: int = 0
) -> Contender:
    """Builds and compiles.

    Args:
      spec: which.
      target: the model.
      batch_size: B.
      max_model_len: the most tokens of a sample.
      room: places of the cache beyond those, for holes.

    Raises:
      UserError: it does not fit in memory, or not the model.
    """
    engine = _engine(spec, target, batch_size, max_model_len, room)
    if spec.planned:  # that is another program; which costs it is given is no matter
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
    """Those of the steps; with simulated drafts, those of steps that have some to verify."""
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
    """The drafter, loaded once for all methods."""
    if PLAIN in (spec.method, spec.drafter):
        return NoDrafter()
    if spec.drafter not in target.drafters:
        target.drafters[spec.drafter] = _drafter(spec, target)
    return target.drafters[spec.drafter]


def _drafter(spec: Spec, target: Target) -> Drafter:
    if target.forced is not None:
        length = spec.draft_length or target.forced.draft_length
        return Simulated(target.forced.acceptance, target.model.vocab_size, length)
    draft_model = target.draft_model if spec.drafter_name in takers("draft_model") else None
    options = {"draft_length": spec.draft_length, "draft_model": draft_model}
    assert target.loaded is not None
    drafting = check_drafting(EMS, spec.drafter_name, options)
    return build_drafter(drafting, target.loaded, target.dtype)


def _bytes_of(engine: Engine, places: int) -> int:
    """So many of each slot's cache, for all slots; a draft model's, too."""
    own = jax.eval_shape(lambda: engine.drafter.init(engine.num_slots, engine.capacity))
    caches = [engine.cache_spec, *(part for part in jax.tree.leaves(own) if part.ndim == 5)]
    held = sum(math.prod(cache.shape) * cache.dtype.itemsize for cache in caches)
    return held * places // engine.capacity


def _memory(compiled: jax.stages.Compiled) -> int | None:
    memory = compiled.memory_analysis()
    if memory is None:
        return None
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return int(held - memory.alias_size_in_bytes + memory.temp_size_in_bytes)
