"""The settings of a benchmark, checked before anything is loaded."""

import importlib.util
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from emsjax.bench.contenders import PLAIN, SIMULATED, Spec, check_spec
from emsjax.bench.peer import PEERS, VLLM
from emsjax.bench.simulated import Forced, forced_acceptance
from emsjax.bench.sweep import Sweep
from emsjax.build_drafter import takers
from emsjax.errors import UserError, check_whole
from emsjax.limits import MAX_BATCH_SIZE, MAX_DEVICES
from emsjax.loading.dtypes import check_quantize


@dataclass(frozen=True)
class Settings:
    """The options of the command line, see its help.

    Attributes:
      methods: methods of the contenders.
      drafters: each method is run with each of them; None for the default.
      batch_sizes: values of B.
      inputs: files of prompts.
      datasets: names of the datasets to use; all if empty.
      output: directory for results.
      model: as for `LLM`.
      draft_model: as for `LLM`.
      draft_quantize: as for `LLM`.
      config: a model's shape, for random weights.
      random_weights: confirms that `config` is meant without real weights.
      simulate_acceptance: a rate or a file.
      prompt_tokens: tokens of each made-up prompt.
      prompts: the fewest prompts of a dataset.
      max_tokens: the most tokens of each text.
      repeats: how often each contender runs.
      jobs: prompts per slot of whole jobs; 0 for batches whose prompts are read before.
      steps_per_turn: steps of a contender before it is the next one's turn; 0 for whole texts.
      ignore_eos: whether texts continue past their end-of-text token.
      chat: whether text prompts go into the chat template.
      dtype: as for `LLM`.
      quantize: as for `LLM`.
      kv_dtype: as for `LLM`.
      tensor_parallel: how many devices share the model.
      parts: whether to time the parts of a step.
      compare: other libraries to compare with, names of `PEERS`.
      vllm_python: the Python of the environment that has vLLM.
      record: a file to record acceptance in, instead of measuring.
      trace: directory for profiler traces.
      append: whether to add to existing results.
    """

    methods: tuple[str, ...]
    drafters: tuple[str, ...] | None
    batch_sizes: tuple[int, ...]
    inputs: tuple[Path, ...]
    datasets: tuple[str, ...]
    output: Path
    model: str | None
    draft_model: str | None
    draft_quantize: str | None
    config: str | None
    random_weights: bool
    simulate_acceptance: str | None
    prompt_tokens: int
    prompts: int
    max_tokens: int
    repeats: int
    jobs: int
    steps_per_turn: int
    ignore_eos: bool
    chat: bool
    dtype: str
    quantize: str | None
    kv_dtype: str | None
    tensor_parallel: int
    parts: bool
    compare: tuple[str, ...]
    vllm_python: Path | None
    record: Path | None
    trace: Path | None
    append: bool

    @property
    def simulated(self) -> str | None:
        """A description of the simulation; None if texts and drafts are real."""
        if self.simulate_acceptance is None:
            return None
        given = self.simulate_acceptance
        return f"random weights in the shape of {self.config}, acceptance forced: {given}"

    def forced(self) -> Forced | None:
        """The simulated acceptance; None if drafts are real.

        Raises:
          UserError: the rate is out of range, or the file cannot be read.
        """
        given = self.simulate_acceptance
        return None if given is None else forced_acceptance(given)

    def texts(self) -> dict[str, Any]:
        """The settings that decide which text is written to a prompt, for the records."""
        return {
            "max_tokens": self.max_tokens,
            "ignore_eos": self.ignore_eos,
            "chat": self.chat,
            "prompt_tokens": self.prompt_tokens if self.config else None,
        }

    def recorded(self) -> Spec:
        """The contender whose drafts are recorded: the first one that drafts.

        Raises:
          UserError: no contender drafts.
        """
        found = [spec for spec in self.specs() if spec.drafter != PLAIN]
        if not found:
            raise UserError(
                "--record needs drafts to record; name a method and a drafter other than none"
            )
        return found[0]

    def specs(self) -> list[Spec]:
        """The names of all contenders, each once."""
        pairs = itertools.product(self.methods, self.drafters or (self._default_drafter(),))
        return list(dict.fromkeys(Spec(m) if m == PLAIN else Spec(m, d) for m, d in pairs))

    def _default_drafter(self, shipped: bool = False) -> str:
        if self.config:
            return SIMULATED
        drafting = shipped or self.draft_model is not None or self.draft_quantize is not None
        return "combined" if drafting else "prompt-lookup"

    def for_model(self, shipped: bool) -> "Settings":
        """The settings with the drafter that `generate` would choose, if none is named.

        Args:
          shipped: whether this package has a draft for the model.
        """
        return replace(self, drafters=self.drafters or (self._default_drafter(shipped),))

    def sweep(self) -> Sweep:
        """The settings of the measurement itself."""
        return Sweep(
            self.specs(),
            self.batch_sizes,
            self.prompts,
            self.max_tokens,
            self.repeats,
            self.steps_per_turn,
            self.jobs,
            # A part of a step is a program of its own, for one device.
            self.parts and self.tensor_parallel == 1,
            self.trace,
        )


def check(settings: Settings) -> None:
    """Checks the options, alone and against each other.

    Raises:
      UserError: an option is unknown, out of range, missing, or contradicts another.
    """
    if not settings.specs():
        raise UserError("there is nothing to measure; name one or more --methods")
    for spec in settings.specs():
        check_spec(spec)
    if settings.record is not None:
        _check_recording(settings)
    for size in settings.batch_sizes:
        check_whole("batch size", size, 1, MAX_BATCH_SIZE)
    _check_compared(settings)
    if settings.tensor_parallel != 1:
        _check_shared(settings)
    if settings.jobs:
        _check_jobs(settings)
    if settings.config is None:
        _check_real(settings)
    else:
        _check_simulated(settings)


def _check_compared(settings: Settings) -> None:
    for name in settings.compare:
        if name not in PEERS:
            raise UserError(f"--compare {name!r} is unknown; use {' or '.join(PEERS)}")
    if settings.compare and importlib.util.find_spec("torch") is None:
        raise UserError("--compare needs PyTorch, which is missing; pip install 'emsjax[torch]'")
    if (VLLM in settings.compare) == (settings.vllm_python is None):
        raise UserError(
            "--compare vllm and --vllm-python need each other; give both (the Python of an "
            "environment that has vLLM), or neither"
        )


def _check_shared(settings: Settings) -> None:
    """Only the decoding of a real model knows several devices."""
    check_whole("--tensor-parallel", settings.tensor_parallel, 1, MAX_DEVICES)
    others = {
        "--compare": settings.compare,
        "--record": settings.record,
        "--config": settings.config,
    }
    _check_not_given(others, "is for a model on one device; leave it or --tensor-parallel out")


def _check_jobs(settings: Settings) -> None:
    """Whole jobs have no batches: nothing takes turns within their texts or is looked into."""
    others = {
        "--steps-per-turn": settings.steps_per_turn,
        "--trace": settings.trace,
        "--record": settings.record,
    }
    _check_not_given(others, "is for batches, and --jobs serves whole jobs; leave one out")


def _check_recording(settings: Settings) -> None:
    settings.recorded()
    figures = {
        "--compare": settings.compare,
        "--append": settings.append,
        "--trace": settings.trace,
    }
    _check_not_given(figures, "is for figures, and --record makes none; leave it out")


def _check_not_given(options: Mapping[str, Any], why_not: str) -> None:
    if given := [name for name, value in options.items() if value]:
        raise UserError(f"{given[0]} {why_not}")


def _check_real(settings: Settings) -> None:
    if settings.random_weights or settings.simulate_acceptance is not None:
        raise UserError(
            "--random-weights and --simulate-acceptance are for a --config; name one, or leave "
            "them out"
        )
    drafters = {spec.drafter_name for spec in settings.specs()}
    if SIMULATED in drafters:
        raise UserError(
            f"the drafter {SIMULATED!r} is for --simulate-acceptance; name another drafter, or a "
            "--config"
        )
    given = {
        "--draft-model": settings.draft_model,
        "--draft-quantize": settings.draft_quantize,
    }
    if drafters.isdisjoint(takers("draft_model")):
        _check_not_given(
            given,
            f"is for --drafters {' or '.join(takers('draft_model'))}; name one of them, or leave "
            "it out",
        )
    check_quantize(settings.draft_quantize)
    if not settings.inputs:
        raise UserError("there are no prompts; name a file of JSON lines with --input")


def _check_simulated(settings: Settings) -> None:
    if not settings.random_weights or settings.simulate_acceptance is None:
        raise UserError(
            "--config has no weights; it needs --random-weights, and --simulate-acceptance with a "
            "rate or a recorded file"
        )
    others = {
        "--model": settings.model,
        "--draft-model": settings.draft_model,
        "--draft-quantize": settings.draft_quantize,
        "--input": settings.inputs,
        "--datasets": settings.datasets,
        "--record": settings.record,
        "--chat": settings.chat,
        "--ignore-eos": settings.ignore_eos,
        "--compare vllm": VLLM in settings.compare,
    }
    if given := [name for name, value in others.items() if value]:
        raise UserError(f"{given[0]} needs a real model; leave out {given[0]} or --config")
    names = {spec.drafter_name for spec in settings.specs()} - {PLAIN, SIMULATED}
    if names:
        raise UserError(
            f"--drafters {', '.join(sorted(names))} cannot draft for random weights; with "
            f"--simulate-acceptance use {SIMULATED} or {SIMULATED}@K"
        )
