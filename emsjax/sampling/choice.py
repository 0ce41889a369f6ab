"""How the tokens of one request are chosen, in the form that the device takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from emsjax.limits import MAX_BAD_WORD_TOKENS, MAX_BAD_WORDS
from emsjax.sampling.rows import NO_TOKEN
from emsjax.sampling.schedule import Scheduled, make_schedule


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
      adjusted: whether the bias, a word, the schedule, a grammar or any of the following fields
        changes a logit.
      min_len: number of prompt and output tokens before which no stop token is chosen; 0 for no
        minimum.
      repetition_penalty: 1 changes nothing.
      frequency_penalty: 0 changes nothing.
      presence_penalty: 0 changes nothing.
      no_repeat_ngram_size: 0 allows repetitions.
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
    no_repeat_ngram_size: Any = 0


NEUTRAL = Settings()
DTYPES = {float: np.float32, int: np.int32, bool: np.bool}
# The settings that change logits before temperature and filters apply.
ADJUSTING = (
    *("min_len", "repetition_penalty", "frequency_penalty", "presence_penalty"),
    "no_repeat_ngram_size",
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Choice:
    """How the tokens of one request are chosen.

    Attributes:
      seed: uint32[2], high and low half of the request's seed.
      index: uint32[], which of the request's samples this is. Each has different noise.
      settings: the sampling parameters, as numpy scalars.
      words: int32[N, L], see `SamplingState`.
      scheduled: the tokens that are forced or forbidden at one place, [N] each.
      bias: float32[V], or None for zeros.
    """

    seed: np.ndarray
    index: np.ndarray
    settings: Settings
    words: np.ndarray
    scheduled: Scheduled
    bias: np.ndarray | None = None

    @property
    def greedy(self) -> bool:
        """Whether every token is the model's likeliest one, without adjustments or logprobs."""
        given = self.settings
        chance = given.temperature > 0 or given.adapt_temperature > 0
        return not (chance or given.adjusted or given.logprobs)


def make_choice(
    *,
    seed: int = 0,
    index: int = 0,
    bias: np.ndarray | None = None,
    words: Sequence[Sequence[int]] = (),
    scheduled: Sequence[tuple[int, int, bool]] = (),
    in_grammar: bool = False,
    **given: Any,
) -> Choice:
    """Makes a choice from plain numbers.

    Args:
      seed: 0 to 2**64 - 1.
      index: which of the request's samples this is.
      bias: float32[V], added to the logits; None for no bias.
      words: words whose last token must not follow the others, within the limits of
        `emsjax.limits`.
      scheduled: see `make_schedule`.
      in_grammar: whether the request has a grammar, which comes with its job.
      **given: fields of `Settings` except `adjusted`. None and omitted fields change nothing.
    """
    wanted = {name: value for name, value in given.items() if value is not None}
    wanted.setdefault("adapt_temperature", wanted.get("temperature", NEUTRAL.temperature))
    settings = NEUTRAL._replace(**wanted)
    adjusted = any(getattr(settings, name) != getattr(NEUTRAL, name) for name in ADJUSTING)
    adjusted = adjusted or bias is not None or bool(words) or bool(scheduled) or in_grammar
    settings = settings._replace(adjusted=adjusted)
    return Choice(
        seed=np.asarray([seed >> 32, seed & 0xFFFFFFFF], np.uint32),
        index=np.asarray(index, np.uint32),
        settings=jax.tree.map(
            lambda neutral, value: np.asarray(value, DTYPES[type(neutral)]), NEUTRAL, settings
        ),
        words=_backwards(words),
        scheduled=make_schedule(scheduled),
        bias=bias,
    )


def _backwards(words: Sequence[Sequence[int]]) -> np.ndarray:
    """Returns the words with the last token first, padded with `NO_TOKEN`; int32[N, L]."""
    array = np.full((MAX_BAD_WORDS, MAX_BAD_WORD_TOKENS), NO_TOKEN, np.int32)
    for row, word in zip(array, words, strict=False):
        row[: len(word)] = word[::-1]
    return array


GREEDY = make_choice()
