"""What a call of the benchmark asks for, checked before anything is loaded."""

import importlib.util
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emsjax.bench.contenders import PLAIN, SIMULATED, Spec, check_spec
from emsjax.bench.simulated import Forced, forced_acceptance
from emsjax.bench.sweep import Sweep
from emsjax.build_drafter import takers
from emsjax.errors import UserError, check_whole

PEERS = ("transformers",)


@dataclass(frozen=True)
class Settings:
    """As the command line has them; see its help.

    Attributes:
      methods: of the contenders.
      drafters: each method is run with each.
      batch_sizes: B.
      inputs: files of prompts.
      datasets: those wanted; all where empty.
      output: directory for results.
      model: as for `LLM`.
      draft_model: as for `LLM`.
      config: a model's shape, for random weights.
      random_weights: whether it is meant.
      simulate_acceptance: a rate or a file.
      prompt_tokens: of each made-up prompt.
      prompts: the fewest a dataset.
      max_tokens: of each text.
      repeats: of each run.
      steps_per_turn: steps of a method before it is the next one's turn; 0 for whole texts.
      ignore_eos: whether texts go on past their end.
      chat: whether text prompts go into the chat template.
      dtype: as for `LLM`.
      parts: whether to time the parts of a step.
      compare: another library.
      record: a file for acceptance, instead of a benchmark.
      trace: directory for profiler traces.
      append: whether to add to results that are there.
    """

    methods: tuple[str, ...]
    drafters: tuple[str, ...] | None
    batch_sizes: tuple[int, ...]
    inputs: tuple[Path, ...]
    datasets: tuple[str, ...]
    output: Path
    model: str | None
    draft_model: str | None
    config: str | None
    random_weights: bool
    simulate_acceptance: str | None
    prompt_tokens: int
    prompts: int
    max_tokens: int
    repeats: int
    steps_per_turn: int
    ignore_eos: bool
    chat: bool
    dtype: str
    parts: bool
    compare: str | None
    record: Path | None
    trace: Path | None
    append: bool

    @property
    def simulated(self) -> str | None:
        """In words; None where texts and drafts are real."""
        if self.simulate_acceptance is None:
            return None
        given = self.simulate_acceptance
        return f"random weights in the shape of {self.config}, acceptance forced: {given}"

    def forced(self) -> Forced | None:
        """What is simulated.

        Raises:
          UserError: the rate is out of range, or the file cannot be read.
        """
        given = self.simulate_acceptance
        return None if given is None else forced_acceptance(given)

    def texts(self) -> dict[str, Any]:
        """What is written to what prompts, apart from how many of them."""
        return {
            "max_tokens": self.max_tokens,
            "ignore_eos": self.ignore_eos,
            "chat": self.chat,
            "prompt_tokens": self.prompt_tokens if self.config else None,
        }

    def recorded(self) -> Spec:
        """The contender whose drafts are recorded: the first that drafts.

        Raises:
          UserError: none does.
        """
        found = [spec for spec in self.specs() if spec.drafter != PLAIN]
        if not found:
            raise UserError("--record needs a method and a drafter that draft")
        return found[0]

    def specs(self) -> list[Spec]:
        """All contenders."""
        pairs = itertools.product(self.methods, self.drafters or (self._default_drafter(),))
        return list(dict.fromkeys(Spec(m) if m == PLAIN else Spec(m, d) for m, d in pairs))

    def _default_drafter(self) -> str:
        if self.config:
            return SIMULATED
        return "prompt-lookup" if self.draft_model is None else "combined"

    def sweep(self) -> Sweep:
        """What is measured."""
        return Sweep(
            self.specs(),
            self.batch_sizes,
            self.prompts,
            self.max_tokens,
            self.repeats,
            self.steps_per_turn,
            self.parts,
            self.trace,
        )


def check(settings: Settings) -> None:
    """Options against each other.

    Raises:
      UserError: something is unknown, out of range, missing, or contradicts something else.
    """
    if not settings.specs():
        raise UserError("there is nothing to measure: name --methods")
    for spec in settings.specs():
        check_spec(spec)
    if settings.record is not None:
        _check_recording(settings)
    for size in settings.batch_sizes:
        check_whole("batch size", size, 1)
    if settings.compare not in (None, *PEERS):
        raise UserError(f"--compare {settings.compare!r} is unknown; there is transformers")
    if settings.compare and importlib.util.find_spec("torch") is None:
        raise UserError("comparing with transformers needs PyTorch: pip install 'emsjax[torch]'")
    if settings.config is None:
        _check_real(settings)
    else:
        _check_simulated(settings)


def _check_recording(settings: Settings) -> None:
    settings.recorded()
    figures = {
        "--compare": settings.compare,
        "--append": settings.append,
        "--trace": settings.trace,
    }
    if given := [name for name, value in figures.items() if value]:
        raise UserError(f"{given[0]} is for figures, of which --record makes none: leave it out")


def _check_real(settings: Settings) -> None:
    if settings.random_weights or settings.simulate_acceptance is not None:
        raise UserError("--random-weights and --simulate-acceptance are for a --config: name one")
    drafters = {spec.drafter_name for spec in settings.specs()}
    if SIMULATED in drafters:
        raise UserError(f"the drafter {SIMULATED!r} is for --simulate-acceptance")
    if settings.draft_model is not None and drafters.isdisjoint(takers("draft_model")):
        raise UserError(f"--draft-model is for --drafters {' or '.join(takers('draft_model'))}")
    if not settings.inputs:
        raise UserError("there are no prompts: name a file of JSON lines with --input")


def _check_simulated(settings: Settings) -> None:
    if not settings.random_weights or settings.simulate_acceptance is None:
        raise UserError(
            "--config has no weights: it needs --random-weights, and --simulate-acceptance with a "
            "rate or a recorded file"
        )
    others = {
        "--model": settings.model,
        "--draft-model": settings.draft_model,
        "--input": settings.inputs,
        "--datasets": settings.datasets,
        "--record": settings.record,
        "--chat": settings.chat,
        "--ignore-eos": settings.ignore_eos,
    }
    if given := [name for name, value in others.items() if value]:
        raise UserError(f"{given[0]} needs a real model: leave it out, or --config")
    if any(spec.drafter_name not in (PLAIN, SIMULATED) for spec in settings.specs()):
        raise UserError(f"with --simulate-acceptance the drafter is {SIMULATED!r}, or with @K")
