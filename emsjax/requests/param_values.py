"""Single values of sampling parameters: their ranges, their checks, and how lists are stored."""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from emsjax.errors import UserError, short
from emsjax.limits import (
    MAX_BAD_WORD_TOKENS,
    MAX_BAD_WORDS,
    MAX_BEGIN_SUPPRESSED,
    MAX_FORCED,
    MAX_LOGPROBS,
    MAX_SEED,
)

# Token counts and ids live in int32 arrays on the device.
_INT32_MAX = 2**31 - 1
# Lists of token ids, and the most entries of each.
TOKEN_LISTS: dict[str, int | None] = {
    "stop_token_ids": None,
    "allowed_token_ids": None,
    "banned_token_ids": None,
    "begin_suppress_tokens": MAX_BEGIN_SUPPRESSED,
    "forced_bos_token_id": MAX_FORCED,
    "forced_eos_token_id": MAX_FORCED,
}
# The smallest and the largest value; a smallest value in a tuple is excluded.
WHOLE: dict[str, tuple[Any, Any]] = {
    "max_tokens": (1, _INT32_MAX),
    "min_tokens": (0, _INT32_MAX),
    "top_k": (-1, _INT32_MAX),
    "seed": (0, MAX_SEED),
    "logprobs": (0, MAX_LOGPROBS),
    "prompt_logprobs": (0, MAX_LOGPROBS),
    "n": (1, 1024),
    "no_repeat_ngram_size": (0, _INT32_MAX),
}
NUMBERS: dict[str, tuple[Any, Any]] = {
    "temperature": (0, 100),
    "adapt_temperature": (0, 100),
    "top_p": ((0,), 1),
    "min_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "repetition_penalty": (0.01, 100),
}


def is_whole(value: object) -> bool:
    """Whether `value` is an int but not a bool: `max_tokens=True` is a mistake, not 1."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_whole_number(name: str, value: Any, low: int, high: int = _INT32_MAX) -> None:
    """Checks that a value is a whole number from `low` to `high`.

    Raises:
      UserError: it is not.
    """
    if not is_whole(value):
        raise UserError(f"{name}={short(value)} must be a whole number.")
    if not low <= value <= high:
        raise UserError(
            f"{name}={short(value)} is out of range; give a number from {low} to {high}."
        )


def check_number(name: str, value: Any, low: Any, high: float) -> None:
    """Checks that a value is a number in a range; a `low` in a tuple is excluded.

    Raises:
      UserError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{name}={short(value)} must be a number.")
    above = value > low[0] if isinstance(low, tuple) else value >= low
    if not (above and value <= high):  # written so that NaN fails too
        lowest = f"above {low[0]}" if isinstance(low, tuple) else f"from {low}"
        raise UserError(f"{name}={short(value)} is out of range; give a number {lowest} to {high}.")


def strings_of(name: str, one: str, value: object) -> tuple[str, ...] | None:
    """Returns a text or texts as a tuple, None if there are none; `one` names a text in errors.

    Raises:
      UserError: it has another type, or too many or invalid entries.
    """
    given = (value,) if isinstance(value, str) else value
    if given is None:
        return None
    if isinstance(given, bytes) or not isinstance(given, Sequence):
        raise UserError(f"{name}={short(value)} must be text or a list of texts.")
    for each in given:
        if not isinstance(each, str):
            raise UserError(f"a {one} is {short(each)}; it must be text.")
        if not each:
            raise UserError(f"a {one} is empty; give it at least one character.")
        if any("\ud800" <= letter <= "\udfff" for letter in each):
            raise UserError(
                f"the {one} {short(each)} has half a surrogate pair, which no text contains; "
                "remove it."
            )
    return tuple(given) or None


def token_ids_of(name: str, value: object) -> tuple[int, ...] | None:
    """Returns the value of a parameter in `TOKEN_LISTS` as a tuple.

    Raises:
      UserError: it has another type, or too many or invalid entries.
    """
    if value is None:
        return None
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise UserError(f"{name}={short(value)} must be a list of token ids.")
    for token_id in value:
        check_whole_number(f"a {name} entry", token_id, low=0)
    most = TOKEN_LISTS[name]
    if most is not None and len(value) > most:
        raise UserError(f"{name} has {len(value)} tokens; give at most {most}.")
    return tuple(value)


def words_of(value: object) -> tuple[tuple[int, ...], ...] | None:
    """Returns the words of `bad_words_ids`, each once.

    Raises:
      UserError: it is no list of lists of token ids, or has too many or too long ones.
    """
    if value is None:
        return None
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise UserError(f"bad_words_ids={short(value)} must be a list of lists of token ids.")
    words = tuple(dict.fromkeys(map(_word, value)))
    longer = sum(len(word) > 1 for word in words)
    if longer > MAX_BAD_WORDS:
        raise UserError(
            f"bad_words and bad_words_ids have {longer} words of several tokens, with and without "
            f"a space before them; give at most {MAX_BAD_WORDS}."
        )
    return words


def _word(value: object) -> tuple[int, ...]:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence) or not value:
        raise UserError(
            f"a word of bad_words_ids is {short(value)}; it must be a list of token ids."
        )
    for token_id in value:
        check_whole_number("a bad_words_ids entry", token_id, low=0)
    if len(value) > MAX_BAD_WORD_TOKENS:
        raise UserError(
            f"the bad word {short(list(value))} has {len(value)} tokens; give words of at most "
            f"{MAX_BAD_WORD_TOKENS}."
        )
    return tuple(value)


class _Biases(tuple):
    """A checked `logit_bias` as pairs, which unlike a dictionary are hashable."""


def biases_of(value: Any) -> _Biases | None:
    """Returns `logit_bias` as sorted pairs; ids may be text, as keys are in JSON.

    Raises:
      UserError: it is no mapping of token ids to numbers in range.
    """
    if value is None or isinstance(value, _Biases):
        return value
    if not isinstance(value, Mapping):
        raise UserError(f"logit_bias={short(value)} must map token ids to numbers.")
    pairs = sorted((_bias_id(token), _bias_value(bias)) for token, bias in value.items())
    for (token, _), (other, _) in pairwise(pairs):
        if token == other:
            raise UserError(f"logit_bias has the token id {token} twice; give it once.")
    return _Biases(pairs) or None


def _bias_id(token: Any) -> int:
    if isinstance(token, str) and re.fullmatch("[0-9]{1,10}", token):
        token = int(token)
    check_whole_number("a token id of logit_bias", token, low=0)
    return token


def _bias_value(value: Any) -> float:
    check_number("a value of logit_bias", value, -1000, 1000)
    return float(value)
