"""Measures all contenders at all batch sizes on all datasets, in turns."""

import gc
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from emsjax.bench.cells import Cell, catching_failures
from emsjax.bench.contenders import PLAIN, Contender, Spec, start
from emsjax.bench.decoding import Decoding, Run, together
from emsjax.bench.limits import Limits, measure_limits, share_of_limit
from emsjax.bench.parts import time_parts
from emsjax.bench.peer import Peer, Starter
from emsjax.bench.prompt_cache import PromptCache, check_fits
from emsjax.bench.prompts import Dataset
from emsjax.bench.target import Target
from emsjax.bench.whole_job import whole_job
from emsjax.engine.job import Job

# Tokens of the warm-up on the first batch, after which no measured run does anything for the first
# time.
WARM_UP_TOKENS = 16
# Room for holes, in texts of full length. Once it is used up, the aligned methods make no more
# holes, which is in their favour.
TEXTS_OF_HOLES = 2
BASELINE = Spec(PLAIN)


@dataclass(frozen=True)
class Sweep:
    """The settings of a sweep.

    Attributes:
      specs: the contenders; plain decoding is added if it is missing.
      batch_sizes: values of B.
      prompts: the fewest prompts of a dataset, rounded up to full batches.
      max_tokens: the most tokens of each text.
      repeats: how often each batch is decoded.
      steps_per_turn: steps a contender runs before it is another one's turn; each contender then
        has its own cache. 0 if texts are written in one go, in one shared cache.
      jobs: prompts per slot of whole jobs, whose slots are refilled; 0 for batches whose prompts
        are read before.
      parts: whether to time the parts of a step.
      trace: directory for profiler traces of a few steps of each contender.
    """

    specs: Sequence[Spec]
    batch_sizes: Sequence[int]
    prompts: int
    max_tokens: int
    repeats: int
    steps_per_turn: int = 0
    jobs: int = 0
    parts: bool = False
    trace: Path | None = None


Say = Callable[[str], None]


def run_sweep(
    sweep: Sweep,
    target: Target,
    datasets: Mapping[str, Dataset],
    on_size: Callable[[list[Cell]], None],
    say: Say,
    peers: Mapping[Spec, Starter],
) -> None:
    """Measures one batch size after another.

    Args:
      sweep: the settings.
      target: the model.
      datasets: prompts by name.
      on_size: called with the cells of a batch size when they are complete.
      say: called with each line of progress.
      peers: starts each contender of other libraries.
    """
    model = target.model
    limits = None
    with catching_failures(
        lambda error: say(f"the device's limits could not be measured: {error}")
    ):
        precision = "highest" if model.dtype == jnp.float32 else None
        limits = measure_limits(model.dtype, precision)
    specs = list(dict.fromkeys([BASELINE, *sweep.specs]))
    for size in sweep.batch_sizes:
        on_size(_Size(sweep, target, size, limits, say, peers).cells(specs, datasets))
        gc.collect()


class _Size:
    """The measurement at one batch size."""

    def __init__(
        self,
        sweep: Sweep,
        target: Target,
        size: int,
        limits: Limits | None,
        say: Say,
        peers: Mapping[Spec, Starter],
    ):
        self._sweep, self._target, self._size = sweep, target, size
        self._limits, self._say, self._peers = limits, say, peers
        self._running: dict[Spec, Contender | Peer] = {}
        self._errors: dict[Spec, str] = {}

    def cells(self, specs: Sequence[Spec], datasets: Mapping[str, Dataset]) -> list[Cell]:
        """Starts all contenders and returns a cell for each of them on each dataset."""
        sweep, size = self._sweep, self._size
        least = sweep.jobs * size or sweep.prompts
        chosen = {name: each.take(least, size) for name, each in datasets.items()}
        longest = max(len(prompt) for prompts in chosen.values() for prompt in prompts)
        self._longest = min(longest + sweep.max_tokens, self._target.max_model_len)
        cells = []
        with ExitStack() as started:
            self._start(specs, started)
            for dataset, prompts in chosen.items():
                at_once = len(prompts) if sweep.jobs else size
                batches = self._target.batches(prompts, at_once, sweep.max_tokens)
                cells += self._measure(dataset, [*specs, *self._peers], batches)
        return cells

    def _start(self, specs: Sequence[Spec], started: ExitStack) -> None:
        """Starts all contenders, with caches of one size, since they may share one.

        Args:
          specs: those of this library.
          started: closes the peers.
        """
        room = TEXTS_OF_HOLES * self._sweep.max_tokens if any(s.aligned for s in specs) else 0
        for spec in specs:
            self._say(f"batch {self._size}: compiling {' '.join(spec)}")
            with catching_failures(partial(self._note, spec)):
                contender = start(spec, self._target, self._size, self._longest, room)
                if spec == BASELINE:
                    # Prefill is timed. This first one keeps the loading of programs out of it.
                    contender.prefill([Job(0, (0, 0), 1)])
                self._running[spec] = contender
        for spec, starter in self._peers.items():
            self._say(f"batch {self._size}: starting {' '.join(spec)}")
            with catching_failures(partial(self._note, spec)):
                peer = starter(self._size, self._longest)
                self._running[spec] = started.enter_context(closing(peer))

    def _measure(
        self, dataset: str, specs: Sequence[Spec], batches: Sequence[Sequence[Job]]
    ) -> list[Cell]:
        cells = [self._cell(spec, dataset) for spec in specs]
        for number, jobs in enumerate(batches):
            if self._sweep.jobs:
                self._say(f"batch {self._size}, {dataset}: a job of {len(jobs)} prompts")
                self._job(jobs, cells)
            else:
                self._say(f"batch {self._size}, {dataset}: prompts {number + 1} of {len(batches)}")
                self._batch(jobs, cells, first=number == 0)
        return cells

    def _cell(self, spec: Spec, dataset: str) -> Cell:
        cell = Cell(spec, dataset, self._size, error=self._errors.get(spec))
        if isinstance(contender := self._running.get(spec), Contender):
            cell.facts = {
                "compile_seconds": contender.compile_seconds,
                "peak_memory_bytes": contender.peak_memory_bytes,
                "attention": contender.attention,
            }
        cell.runs = [[] for _ in range(self._sweep.repeats)]
        return cell

    def _job(self, jobs: Sequence[Job], cells: Sequence[Cell]) -> None:
        """Runs all contenders on a whole job, in turns; each repetition starts with another one."""
        short = [replace(job, max_tokens=WARM_UP_TOKENS) for job in jobs[: self._size]]
        for cell in cells:
            self._attempt(cell, self._warm_up_job, short)
        for number in range(self._sweep.repeats):
            for cell in _rotated(cells, number):
                self._attempt(cell, self._serve, jobs, number)

    def _warm_up_job(self, cell: Cell, short: Sequence[Job]) -> None:
        contender = self._running[cell.spec]
        if isinstance(contender, Contender):
            arrays = jax.tree.leaves(contender.engine.cache_spec)
            check_fits(sum(x.size * x.dtype.itemsize for x in arrays), "--jobs")
        contender.serve(short)

    def _serve(self, cell: Cell, jobs: Sequence[Job], number: int) -> None:
        cell.runs[number].append(whole_job(self._running[cell.spec], jobs))

    def _batch(self, jobs: Sequence[Job], cells: Sequence[Cell], first: bool) -> None:
        """Runs all contenders on one batch, in turns; each repetition starts with another one."""
        if BASELINE not in self._running:
            for cell in cells:
                cell.error = cell.error or "plain decoding, which reads the prompts, did not run"
            return
        plain = self._running[BASELINE]
        assert isinstance(plain, Contender)
        cache = PromptCache(plain, jobs)
        for cell in cells if first else ():
            self._attempt(cell, self._warm_up, cache)
        for number in range(self._sweep.repeats):
            self._repetition(_rotated(cells, number), cache, number)

    def _repetition(self, cells: Sequence[Cell], cache: PromptCache, number: int) -> None:
        """Runs each contender once on the batch: text by text, or a few steps per turn."""
        begun: dict[Spec, Decoding] = {}
        if self._sweep.steps_per_turn:
            for cell in cells:
                self._attempt(cell, self._begin, cache, begun)
            self._take_turns({cell.spec: cell for cell in cells}, begun)
        for cell in cells:
            self._attempt(cell, self._decode, cache, number, begun)

    def _take_turns(self, cells: Mapping[Spec, Cell], begun: dict[Spec, Decoding]) -> None:
        """Runs all decodings to their ends, a few steps per turn.

        A slow moment of the machine then slows all of them. The next turn is that of the decoding
        with the fewest tokens, which keeps all of them in the same part of the texts.
        """
        while unfinished := [spec for spec, decoding in begun.items() if not decoding.ended]:
            spec = min(unfinished, key=lambda spec: begun[spec].written)
            self._attempt(cells[spec], self._advance, begun[spec])
            if cells[spec].error is not None:
                del begun[spec]

    def _advance(self, cell: Cell, decoding: Decoding) -> None:
        del cell
        decoding.advance(self._sweep.steps_per_turn)

    def _attempt(self, cell: Cell, action: Callable[..., None], *arguments: Any) -> None:
        """Calls `action`, unless the contender failed before at this batch size."""
        if cell.error is not None:
            return
        with catching_failures(lambda error: self._fail(cell, error)):
            action(cell, *arguments)

    def _fail(self, cell: Cell, error: str) -> None:
        cell.error = error
        self._note(cell.spec, error)

    def _note(self, spec: Spec, error: str) -> None:
        self._errors[spec] = error
        self._running.pop(spec, None)
        self._say(f"batch {self._size}: {' '.join(spec)}: {error}")

    def _warm_up(self, cell: Cell, cache: PromptCache) -> None:
        contender = self._running[cell.spec]
        short = [replace(job, max_tokens=WARM_UP_TOKENS) for job in cache.jobs]
        _decoded(contender, cache, short)
        with catching_failures(
            lambda error: self._say(f"{' '.join(cell.spec)}: no details: {error}")
        ):
            self._look_into(cell, contender, cache, short)

    def _look_into(
        self, cell: Cell, contender: Contender | Peer, cache: PromptCache, short: Sequence[Job]
    ) -> None:
        """Traces and times the parts of a step; the figures do not depend on it."""
        if self._sweep.trace is not None:
            name = "-".join((*cell.spec, str(self._size)))
            with jax.profiler.trace(self._sweep.trace / name):
                _decoded(contender, cache, short)
        if self._sweep.parts and isinstance(contender, Contender):
            lent, cell.parts = time_parts(contender, self._target, cache.lend(), cache.jobs)
            cache.give_back(lent)

    def _begin(self, cell: Cell, cache: PromptCache, begun: dict[Spec, Decoding]) -> None:
        """Starts a decoding in a copy of the cache; a peer cannot take turns and is left out."""
        contender = self._running[cell.spec]
        if isinstance(contender, Contender):
            prompts = cache.lend()
            cache.give_back(prompts)
            check_fits(prompts.nbytes, "--steps-per-turn")
            begun[cell.spec] = contender.begin(jnp.copy(prompts), cache.jobs)

    def _decode(
        self, cell: Cell, cache: PromptCache, number: int, begun: Mapping[Spec, Decoding]
    ) -> None:
        """Adds the finished run if the contender took turns, or decodes the whole batch now."""
        contender = self._running[cell.spec]
        if cell.spec in begun:
            run = begun[cell.spec].run(cache.seconds)
        else:
            run = _decoded(contender, cache, cache.jobs)
        cell.runs[number].append(run)
        if isinstance(contender, Contender) and self._limits is not None:
            all_runs = together([run for runs in cell.runs for run in runs])
            cell.limit_share = share_of_limit(all_runs, self._target.model, self._limits)


def _rotated(cells: Sequence[Cell], number: int) -> list[Cell]:
    """The cells in the order of one repetition."""
    first = number % len(cells)
    return [*cells[first:], *cells[:first]]


def _decoded(contender: Contender | Peer, cache: PromptCache, jobs: Sequence[Job]) -> Run:
    """Decodes a batch after the prompts in the cache; a peer reads them itself."""
    if not isinstance(contender, Contender):
        return whole_job(contender, jobs)
    lent, run = contender.decode(cache.lend(), jobs, cache.seconds)
    cache.give_back(lent)
    return run
