"""How the tokens of one request are chosen, and when it ends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from emsjax.errors import UserError

# Token counts and ids live in int32 arrays on the device.
_INT32_MAX = 2**31 - 1

_GREEDY = frozenset({"max_tokens", "seed", "stop_token_ids", "ignore_eos"})


@dataclass(frozen=True)
class SamplingParams:
    """How one request is decoded; names and meanings are those of vLLM.

    This release decodes greedily. Options that would change that are here under their final
    names, but any value other than the default raises: an option is never silently ignored.

    Attributes:
      max_tokens: the most tokens to generate, 1 or more.
      min_tokens: not there yet.
      temperature: 0 is greedy; other values are not there yet.
      top_k: not there yet.
      top_p: not there yet.
      min_p: not there yet.
      seed: makes sampling repeatable; accepted, and without effect on greedy decoding.
      stop: stop strings; not there yet.
      stop_token_ids: ids that end the output besides the model's end of text; kept as a tuple.
        The id that ended it is `CompletionOutput.stop_reason`.
      ignore_eos: go on to `max_tokens` even where the model ends its text.
      logprobs: not there yet.
      n: outputs per prompt; more than 1 is not there yet.
      presence_penalty: not there yet.
      frequency_penalty: not there yet.
      repetition_penalty: not there yet.
      logit_bias: not there yet.

    Raises:
      UserError: a value has the wrong type, is out of range, or asks for something not there yet.
    """

    max_tokens: int = 16
    min_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    ignore_eos: bool = False
    logprobs: int | None = None
    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] | None = None

    def __post_init__(self) -> None:
        _check_whole("max_tokens", self.max_tokens, low=1)
        if self.seed is not None:
            _check_whole("seed", self.seed, low=0, high=2**63 - 1)
        if not isinstance(self.ignore_eos, bool):
            raise UserError(f"ignore_eos={self.ignore_eos!r} must be true or false.")
        # A frozen dataclass is set this way; a tuple cannot change under a running request.
        object.__setattr__(self, "stop_token_ids", _token_ids(self.stop_token_ids))
        for field in fields(self):
            if field.name not in _GREEDY:
                _check_default(field.name, getattr(self, field.name), field.default)

    @classmethod
    def from_mapping(
        cls, mapping: Mapping[str, Any], defaults: "SamplingParams | None" = None
    ) -> "SamplingParams":
        """Parameters by name, as a line of JSON gives them, over `defaults`.

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
        return replace(defaults or cls(), **mapping)


def _is_whole(value: object) -> bool:
    """Whether this is an int proper: True counts as 1 in Python, and is never meant as one."""
    return isinstance(value, int) and not isinstance(value, bool)


def _check_whole(name: str, value: object, low: int, high: int = _INT32_MAX) -> None:
    if not _is_whole(value):
        raise UserError(f"{name}={value!r} must be a whole number.")
    if not low <= value <= high:  # type: ignore[operator]
        raise UserError(f"{name}={value} is out of range; give a number from {low} to {high}.")


def _token_ids(value: object) -> tuple[int, ...] | None:
    if value is None:
        return None
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise UserError(f"stop_token_ids={value!r} must be a list of token ids.")
    for token_id in value:
        _check_whole("a stop_token_ids entry", token_id, low=0)
    return tuple(value)


def _check_default(name: str, value: object, default: object) -> None:
    """Refuse what a greedy decoder would have to ignore."""
    empty = default is None and isinstance(value, str | Sequence | Mapping) and not value
    if empty or (not isinstance(value, bool) and value == default):
        return
    raise UserError(
        f"{name}={value!r} is not there yet: this release decodes greedily; "
        f"leave {name} out or at {default!r}."
    )
