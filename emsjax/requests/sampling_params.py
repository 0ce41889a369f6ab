"""How the tokens of one request are chosen, and when it ends."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

from emsjax.errors import UserError
from emsjax.limits import MAX_LOGPROBS

# Token counts and ids live in int32 arrays on the device.
_INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class SamplingParams:
    """How one request is decoded; names and meanings are those of vLLM.

    The logits of the next token pass, in this order: `logit_bias`, allowed and banned tokens,
    `min_tokens`; the repetition, frequency and presence penalties; then, where the temperature is
    above 0: temperature, `top_k`, `top_p`, `min_p`. Speculation changes none of it: a draft token
    counts only if the target would have chosen it itself, with these parameters and the prefix
    that it has there.

    Attributes:
      max_tokens: the most tokens to generate, 1 or more.
      min_tokens: so many tokens come before any end of text or stop token, and a stop string is
        not complete before the last of them.
      temperature: 0 is greedy; the higher, the more even the choice.
      adapt_temperature: the temperature of the first token of an indented line instead, that is
        of one behind a line break and blanks, where code is hardest to guess (AdapT,
        arXiv 2309.02772, which has 0.8 there and 0.6 elsewhere); None for the same one.
      top_k: keep the k likeliest tokens (and those as likely as the last of them); 0 or -1 keeps
        all; None is the model's generation config's, else all.
      top_p: keep the likeliest tokens that together have this probability (and those as likely as
        the last of them), above 0 to 1; None likewise.
      min_p: keep tokens at least this likely, as a share of the likeliest, 0 to 1; None likewise.
      seed: 0 to 2**63 - 1. The tokens depend on the seed, the prompt, these parameters and the
        model alone. None gives each request a seed of its own, from that of the `LLM`.
      stop: strings that end the output, which is cut before them.
      stop_token_ids: ids that end the output besides the model's end of text; kept as a tuple.
      ignore_eos: go on to `max_tokens` even where the model ends its text.
      logprobs: give the log-probability of each token and of so many of the likeliest, 0 to 20:
        the model's own, before bias, penalties and temperature; None for none.
      n: outputs for the prompt; more than one need a temperature above 0.
      presence_penalty: taken from the logits of tokens that are in the output, -2 to 2.
      frequency_penalty: taken from a token's logit each time that it is in the output, -2 to 2.
      repetition_penalty: logits of tokens in prompt or output are divided by this where positive
        and multiplied where negative, 0.01 to 100; None is the model's generation config's, else 1.
      logit_bias: added to logits, by token id.
      allowed_token_ids: only these may be chosen; None allows all.
      banned_token_ids: these may not.

    Raises:
      UserError: a value has the wrong type or is out of range, or two contradict each other.
    """

    max_tokens: int = 16
    min_tokens: int = 0
    temperature: float = 0.0
    adapt_temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    ignore_eos: bool = False
    logprobs: int | None = None
    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float | None = None
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: Sequence[int] | None = None
    banned_token_ids: Sequence[int] | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in _WHOLE.items():
            _check_optional(name, getattr(self, name), low, high, _check_whole)
        for name, (low, high) in _NUMBERS.items():
            _check_optional(name, getattr(self, name), low, high, _check_number)
        if not isinstance(self.ignore_eos, bool):
            raise UserError(f"ignore_eos={self.ignore_eos!r} must be true or false.")
        # A frozen dataclass is set this way; a tuple cannot change under a running request.
        object.__setattr__(self, "stop", _strings(self.stop))
        for name in ("stop_token_ids", "allowed_token_ids", "banned_token_ids"):
            object.__setattr__(self, name, _token_ids(name, getattr(self, name)))
        object.__setattr__(self, "logit_bias", _bias(self.logit_bias))
        _check_together(self)

    @property
    def samples(self) -> bool:
        """Whether chance has a part in it."""
        return self.temperature > 0 or (self.adapt_temperature or 0) > 0

    @property
    def biases(self) -> dict[int, float]:
        """`logit_bias` as a dictionary, empty where there is none."""
        return dict(self.logit_bias or ())  # type: ignore[call-overload]

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> "SamplingParams":
        """Parameters by name, as a line of JSON gives them.

        Raises:
          UserError: a name is unknown or a value is refused.
        """
        known = [field.name for field in fields(cls)]
        unknown = [name for name in mapping if name not in known]
        if unknown:
            raise UserError(
                f"{', '.join(map(repr, unknown))} is not a sampling parameter; "
                f"take it out or use one of {', '.join(known)}."
            )
        return cls(**mapping)


_OPTIONAL = {f.name for f in fields(SamplingParams) if f.default is None}
# The smallest and the largest value; a bound in a tuple is itself not allowed.
_WHOLE: dict[str, tuple[Any, Any]] = {
    "max_tokens": (1, _INT32_MAX),
    "min_tokens": (0, _INT32_MAX),
    "top_k": (-1, _INT32_MAX),
    "seed": (0, 2**63 - 1),
    "logprobs": (0, MAX_LOGPROBS),
    "n": (1, 1024),
}
_NUMBERS: dict[str, tuple[Any, Any]] = {
    "temperature": (0, 100),
    "adapt_temperature": (0, 100),
    "top_p": ((0,), 1),
    "min_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "repetition_penalty": (0.01, 100),
}


def _check_optional(name: str, value: object, low: Any, high: Any, check: Any) -> None:
    if value is not None or name not in _OPTIONAL:
        check(name, value, low, high)


def _is_whole(value: object) -> bool:
    """Whether this is an int proper: True counts as 1 in Python, and is never meant as one."""
    return isinstance(value, int) and not isinstance(value, bool)


def _check_whole(name: str, value: Any, low: int, high: int = _INT32_MAX) -> None:
    if not _is_whole(value):
        raise UserError(f"{name}={value!r} must be a whole number.")
    if not low <= value <= high:
        raise UserError(
            f"{name}={_shown(value)} is out of range; give a number from {low} to {high}."
        )


def _check_number(name: str, value: Any, low: Any, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{name}={value!r} must be a number.")
    above = value > low[0] if isinstance(low, tuple) else value >= low
    if not (above and value <= high):  # also refuses what is not a number, such as NaN
        lowest = f"above {low[0]}" if isinstance(low, tuple) else f"from {low}"
        raise UserError(
            f"{name}={_shown(value)} is out of range; give a number {lowest} to {high}."
        )


def _shown(value: Any) -> str:
    """A number as text; Python refuses to write very long ones."""
    try:
        return str(value)
    except ValueError:
        return "(thousands of digits)"


def _strings(value: object) -> tuple[str, ...] | None:
    given = (value,) if isinstance(value, str) else value
    if given is None:
        return None
    if isinstance(given, bytes) or not isinstance(given, Sequence):
        raise UserError(f"stop={value!r} must be text or a list of texts.")
    for each in given:
        if not isinstance(each, str):
            raise UserError(f"a stop string is {each!r}; it must be text.")
        if not each:
            raise UserError("a stop string is empty; give it at least one character.")
    return tuple(given) or None


def _token_ids(name: str, value: object) -> tuple[int, ...] | None:
    if value is None:
        return None
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise UserError(f"{name}={value!r} must be a list of token ids.")
    for token_id in value:
        _check_whole(f"a {name} entry", token_id, low=0)
    return tuple(value)


class _Biases(tuple):
    """Pairs of a checked `logit_bias`: unlike a dictionary, they can be hashed."""


def _bias(value: Any) -> _Biases | None:
    """Checked and sorted; ids may be text, as the keys of JSON are."""
    if value is None or isinstance(value, _Biases):
        return value
    if not isinstance(value, Mapping):
        raise UserError(f"logit_bias={value!r} must map token ids to numbers.")
    pairs = sorted((_bias_id(token), _bias_value(bias)) for token, bias in value.items())
    for (token, _), (other, _) in pairwise(pairs):
        if token == other:
            raise UserError(f"logit_bias has the token id {token} twice; give it once.")
    return _Biases(pairs) or None


def _bias_id(token: Any) -> int:
    if isinstance(token, str) and re.fullmatch("[0-9]{1,10}", token):
        token = int(token)
    _check_whole("a token id of logit_bias", token, low=0)
    return token


def _bias_value(value: Any) -> float:
    _check_number("a value of logit_bias", value, -1000, 1000)
    return float(value)


def _check_together(params: SamplingParams) -> None:
    """Refuse what contradicts itself."""
    if params.min_tokens > params.max_tokens:
        raise UserError(
            f"min_tokens={params.min_tokens} is more than max_tokens={params.max_tokens}; "
            "lower one or raise the other."
        )
    if params.n > 1 and not params.samples:
        raise UserError(
            f"n={params.n} outputs would all be the same at temperature 0; "
            "give a temperature, or leave n out."
        )
    allowed = params.allowed_token_ids
    if allowed is not None and not set(allowed) - set(params.banned_token_ids or ()):
        raise UserError("allowed_token_ids and banned_token_ids leave no token to choose.")
