"""How the tokens of one request are chosen, in the form that the device takes."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np


class Settings(NamedTuple):
    """The sampling parameters that the device knows; the defaults change nothing.

    Everything below `SamplingParams` uses this one list. The type of a default determines the type
    on the device: float32, int32 or bool. Each field holds the number of one request, or an array
    over slots [B] or rows [W].

    Attributes:
      temperature: 0 is greedy.
      adapt_temperature: for the first token of an indented line; equals `temperature` without
        AdapT.
      top_k: 0 keeps all.
      top_p: 1 keeps all.
      min_p: 0 keeps all.
      logprobs: whether log-probabilities are recorded.
      adjusted: whether the bias or any of the following fields changes a logit.
      min_len: number of prompt and output tokens before which no stop token is chosen; 0 for no
        minimum.
      repetition_penalty: 1 changes nothing.
      frequency_penalty: 0 changes nothing.
      presence_penalty: 0 changes nothing.
    """

    temperature: Any = 0.0
    adapt_temperature: Any = 0.0
    top_k: Any = 0
    top_p: Any = 1.0
    min_p: Any = 0.0
    logprobs: Any = False
    adjusted: Any = False
    min_len: Any = 0
    repetition_penalty: Any = 1.0
    frequency_penalty: Any = 0.0
    presence_penalty: Any = 0.0


NEUTRAL = Settings()
DTYPES = {float: np.float32, int: np.int32, bool: np.bool}
# The settings that change logits before temperature and filters apply.
ADJUSTING = ("min_len", "repetition_penalty", "frequency_penalty", "presence_penalty")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Choice:
    """How the tokens of one request are chosen.

    Attributes:
      seed: uint32[2], high and low half of the request's seed.
      index: uint32[], which of the request's samples this is. Each has different noise.
      settings: the sampling parameters, as numpy scalars.
      bias: float32[V], or None for zeros.
    """

    seed: np.ndarray
    index: np.ndarray
    settings: Settings
    bias: np.ndarray | None = None

    @property
    def greedy(self) -> bool:
        """Whether every token is the model's likeliest one, without adjustments or logprobs."""
        given = self.settings
        chance = given.temperature > 0 or given.adapt_temperature > 0
        return not (chance or given.adjusted or given.logprobs)


def make_choice(
    *, seed: int = 0, index: int = 0, bias: np.ndarray | None = None, **given: Any
) -> Choice:
    """Makes a choice from plain numbers.

    Args:
      seed: 0 to 2**64 - 1.
      index: which of the request's samples this is.
      bias: float32[V], added to the logits; None for no bias.
      **given: fields of `Settings` except `adjusted`. None and omitted fields change nothing.
    """
    wanted = {name: value for name, value in given.items() if value is not None}
    wanted.setdefault("adapt_temperature", wanted.get("temperature", NEUTRAL.temperature))
    settings = NEUTRAL._replace(**wanted)
    adjusted = any(getattr(settings, name) != getattr(NEUTRAL, name) for name in ADJUSTING)
    settings = settings._replace(adjusted=adjusted or bias is not None)
    return Choice(
        seed=np.asarray([seed >> 32, seed & 0xFFFFFFFF], np.uint32),
        index=np.asarray(index, np.uint32),
        settings=jax.tree.map(
            lambda neutral, value: np.asarray(value, DTYPES[type(neutral)]), NEUTRAL, settings
        ),
        bias=bias,
    )


GREEDY = make_choice()
