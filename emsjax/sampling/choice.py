"""How one request's tokens are chosen, as the device takes it."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Choice:
    """A request's row of `SamplingState`; the default is the likeliest token.

    Attributes:
      seed: uint32[2], high and low half of the request's seed.
      index: uint32[], which of the request's samples this is; each has noise of its own.
      temperature: float32[].
      adapt_temperature: float32[], equal to `temperature` where AdapT is not wanted.
      top_k: int32[], 0 keeps all.
      top_p: float32[].
      min_p: float32[].
      wants_logprobs: bool[], whether log-probabilities are noted.
      adjusted: bool[], whether what follows changes any logit.
      min_lens: int32[], see `SamplingState`.
      repetition_penalty: float32[].
      frequency_penalty: float32[].
      presence_penalty: float32[].
      bias: float32[V], or None for zeros.
    """

    seed: np.ndarray
    index: np.ndarray
    temperature: np.ndarray
    adapt_temperature: np.ndarray
    top_k: np.ndarray
    top_p: np.ndarray
    min_p: np.ndarray
    wants_logprobs: np.ndarray
    adjusted: np.ndarray
    min_lens: np.ndarray
    repetition_penalty: np.ndarray
    frequency_penalty: np.ndarray
    presence_penalty: np.ndarray
    bias: np.ndarray | None = None

    @property
    def greedy(self) -> bool:
        """Whether it is always the model's likeliest token, and nothing else is wanted."""
        chance = self.temperature > 0 or self.adapt_temperature > 0
        return not (chance or self.adjusted or self.wants_logprobs)


def make_choice(
    *,
    seed: int = 0,
    index: int = 0,
    temperature: float = 0.0,
    adapt_temperature: float | None = None,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    min_len: int = 0,
    repetition_penalty: float = 1.0,
    frequency_penalty: float = 0.0,
    presence_penalty: float = 0.0,
    bias: np.ndarray | None = None,
    logprobs: bool = False,
) -> Choice:
    """A choice of plain numbers; see `SamplingParams` for what they mean.

    Args:
      seed: 0 to 2**64 - 1.
      index: which of the request's samples.
      temperature: 0 is greedy.
      adapt_temperature: of the first token of an indented line; None for `temperature`.
      top_k: 0 keeps all.
      top_p: 1 keeps all.
      min_p: 0 keeps all.
      min_len: prompt and output tokens before which no stop token comes; 0 for any.
      repetition_penalty: 1 changes nothing.
      frequency_penalty: 0 changes nothing.
      presence_penalty: 0 changes nothing.
      bias: float32[V], added to the logits.
      logprobs: whether they are noted.
    """
    penalties = (repetition_penalty - 1, frequency_penalty, presence_penalty)
    other = temperature if adapt_temperature is None else adapt_temperature
    numbers: dict[str, Any] = {
        "temperature": temperature,
        "adapt_temperature": other,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "frequency_penalty": frequency_penalty,
        "presence_penalty": presence_penalty,
    }
    return Choice(
        seed=np.asarray([seed >> 32, seed & 0xFFFFFFFF], np.uint32),
        index=np.asarray(index, np.uint32),
        top_k=np.asarray(top_k, np.int32),
        min_lens=np.asarray(min_len, np.int32),
        wants_logprobs=np.asarray(logprobs),
        adjusted=np.asarray(any(penalties) or min_len > 0 or bias is not None),
        bias=bias,
        **{name: np.asarray(value, np.float32) for name, value in numbers.items()},
    )


GREEDY = make_choice()
