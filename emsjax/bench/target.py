"""The model that is measured: a real one, or a shape with random weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from emsjax.bench.prompts import Tokens
from emsjax.bench.simulated import Forced, scripted_choice
from emsjax.engine.devices import shared_by
from emsjax.engine.drafter import Drafter
from emsjax.engine.job import Job
from emsjax.engine.model import Model
from emsjax.loading.load import LoadedModel, load_model
from emsjax.loading.random_weights import random_model
from emsjax.requests.reader import RequestReader
from emsjax.requests.sampling_params import SamplingParams


@dataclass(frozen=True)
class Target:
    """The model and everything else that all contenders share.

    Attributes:
      model: the model with its weights.
      name: the model's name, for reports and for its table of step costs.
      stop_ids: end-of-text tokens; empty if texts continue up to their limit.
      max_model_len: the most tokens of a sample that the model was made for.
      read: returns a prompt's token ids; None if prompts are made up.
      loaded: the real model, from which drafters are built; None for random weights.
      forced: the simulated acceptance; None if drafts are real.
      options: further options of every engine.
      dtype: of the model, as for `LLM`.
      draft_model: for the drafters that need one.
      draft_quantize: of a draft model, as for `LLM`.
      drafters: the drafters loaded so far, by name.
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
    draft_quantize: str | None = None
    drafters: dict[str, Drafter] = field(default_factory=dict)

    def batches(self, prompts: Sequence[Tokens], size: int, max_tokens: int) -> list[list[Job]]:
        """Returns the prompts as jobs, in batches of `size`.

        No text grows beyond the model's positions, whatever `max_tokens` is: the cache is rounded
        up to whole blocks and would have room for more.
        """
        jobs = [
            Job(n % size, prompt, min(max_tokens, self.max_model_len - len(prompt)), self.stop_ids)
            for n, prompt in enumerate(prompts)
        ]
        return [jobs[first : first + size] for first in range(0, len(jobs), size)]


def real_target(
    model: str | None,
    dtype: str,
    *,
    quantize: str | None = None,
    kv_dtype: str | None = None,
    tensor_parallel: int = 1,
    draft_model: str | None = None,
    draft_quantize: str | None = None,
    ignore_eos: bool = False,
) -> Target:
    """Loads a model with its weights.

    Args:
      model: as for `LLM`.
      dtype: as for `LLM`.
      quantize: as for `LLM`.
      kv_dtype: as for `LLM`.
      tensor_parallel: the number of devices that share the model.
      draft_model: as for `LLM`.
      draft_quantize: as for `LLM`.
      ignore_eos: whether texts continue past end-of-text tokens up to their limit.

    Raises:
      UserError: as for `load_model`, or there are fewer devices.
    """
    devices = shared_by(tensor_parallel)
    loaded = load_model(model, dtype=dtype, quantize=quantize, kv_dtype=kv_dtype, devices=devices)
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
        options={"devices": devices},
        dtype=dtype,
        draft_model=draft_model,
        draft_quantize=draft_quantize,
    )


def random_target(
    config: str,
    dtype: str,
    forced: Forced,
    quantize: str | None = None,
    kv_dtype: str | None = None,
) -> Target:
    """Makes a model of a given shape with random weights, whose texts and drafts are simulated.

    Args:
      config: as for `named_config`.
      dtype: as for `LLM`.
      forced: the simulated acceptance.
      quantize: as for `LLM`.
      kv_dtype: as for `LLM`.

    Raises:
      UserError: there is no such configuration.
    """
    model: Model = random_model(config, dtype, quantize, kv_dtype)
    options = {"choose": scripted_choice(model.vocab_size)}
    longest = model.max_positions
    return Target(model, config, (), longest, forced=forced, options=options, dtype=dtype)
