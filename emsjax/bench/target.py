"""The model that is measured: a real one, or only its shape with random weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from emsjax.bench.prompts import Tokens
from emsjax.bench.simulated import Forced, scripted_choice
from emsjax.engine.drafter import Drafter
from emsjax.engine.job import Job
from emsjax.engine.model import Model
from emsjax.loading.load import LoadedModel, load_model
from emsjax.loading.random_weights import random_model
from emsjax.requests.reader import RequestReader
from emsjax.requests.sampling_params import SamplingParams


@dataclass(frozen=True)
class Target:
    """What all methods share.

    Attributes:
      model: with weights.
      name: for people.
      stop_ids: end of text; empty where texts go on to their limit.
      max_model_len: the most tokens of a sample that the model was made for.
      read: a prompt's token ids; None where prompts are made up.
      loaded: a real model, for its drafters; None for random weights.
      forced: what is simulated; None where drafts are real.
      options: of every engine.
      dtype: of the model, as for `LLM`.
      draft_model: for the drafters that need one.
      drafters: those loaded so far, by name.
    """

    model: Model
    name: str
    stop_ids: tuple[int, ...]
    max_model_len: int
    read: Callable[[Any], Tokens] | None = None
    loaded: LoadedModel | None = None
    forced: Forced | None = None
    options: dict[str, Any] = field(default_factory=dict)
    dtype: str = "auto"
    draft_model: str | None = None
    drafters: dict[str, Drafter] = field(default_factory=dict)

    def batches(self, prompts: Sequence[Tokens], size: int, max_tokens: int) -> list[list[Job]]:
        """Prompts as jobs, `size` together; no text goes on where the model ends."""
        jobs = [
            Job(n % size, prompt, min(max_tokens, self.max_model_len - len(prompt)), self.stop_ids)
            for n, prompt in enumerate(prompts)
        ]
        return [jobs[first : first + size] for first in range(0, len(jobs), size)]


def real_target(
    model: str | None,
    dtype: str,
    *,
    draft_model: str | None = None,
    ignore_eos: bool = False,
) -> Target:
    """A model with its weights.

    Args:
      model: as for `LLM`.
      dtype: likewise.
      draft_model: likewise.
      ignore_eos: whether texts go on to their limit.

    Raises:
      UserError: as for `load_model`.
    """
    loaded = load_model(model, dtype=dtype)
    target = loaded.model
    reader = RequestReader(loaded, target.vocab_size, target.max_positions, seed=0)
    params = SamplingParams(max_tokens=1)
    return Target(
        target,
        loaded.name,
        () if ignore_eos else loaded.eos_token_ids,
        target.max_positions,
        read=lambda prompt: reader.read(prompt, params, "").prompt_token_ids,
        loaded=loaded,
        dtype=dtype,
        draft_model=draft_model,
    )


def random_target(config: str, dtype: str, forced: Forced) -> Target:
    """A model of some shape with random weights, its texts and drafts simulated.

    Args:
      config: as for `named_config`.
      dtype: as for `LLM`.
      forced: what is drafted and accepted.

    Raises:
      UserError: there is no such configuration.
    """
    model: Model = random_model(config, dtype)
    options = {"choose": scripted_choice(model.vocab_size)}
    longest = model.max_positions
    return Target(model, config, (), longest, forced=forced, options=options, dtype=dtype)
