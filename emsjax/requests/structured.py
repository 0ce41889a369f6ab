"""What an output may be, as vLLM names it."""

import json as json_
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from emsjax.errors import UserError, short
from emsjax.requests.vllm_names import takes_vllm_names
from emsjax.requests.vllm_requests import STRUCTURED_OUTPUTS

_KINDS = ("json", "regex", "choice", "json_object")
# JSON text of a schema, and other grammars, that anybody would write by hand.
_MOST_CHARACTERS = 100_000


@dataclass(frozen=True)
class StructuredOutputsParams:
    """What an output may be; exactly one of the first four fields is given.

    Attributes:
      json: a JSON schema, as a dictionary or as text; stored as text. The output is JSON text.
      regex: a regular expression that matches the whole output, in the syntax of Rust's `regex`.
      choice: the texts that the output may be; stored as a tuple.
      json_object: whether the output is any JSON object, of at most 4 levels of objects and lists,
        with at most one space between its parts.
      whitespace_pattern: with `json`, a regular expression of the white space between parts of the
        JSON text; at most one space by default.

    Raises:
      UserError: none or several kinds are given, or a field has the wrong type.
    """

    json: str | Mapping[str, Any] | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    json_object: bool | None = None
    whitespace_pattern: str | None = None

    def __post_init__(self) -> None:
        given = [name for name in _KINDS if getattr(self, name) not in (None, False)]
        if len(given) != 1:
            raise UserError(
                f"structured_outputs has {' and '.join(given) or 'no kind of output'}; give one of "
                f"{', '.join(_KINDS)}"
            )
        if self.json is not None:
            object.__setattr__(self, "json", _schema_text(self.json))
        if self.choice is not None:
            object.__setattr__(self, "choice", _choices(self.choice))
        if self.json_object not in (None, True, False):
            raise UserError(f"json_object={short(self.json_object)} must be true or false")
        for name in ("regex", "whitespace_pattern"):
            _check_text(name, getattr(self, name))
        if self.whitespace_pattern is not None and given != ["json"]:
            raise UserError(f"whitespace_pattern is for json, not for {given[0]}; leave it out")


_INIT = takes_vllm_names("a field of structured_outputs", STRUCTURED_OUTPUTS)(
    StructuredOutputsParams.__init__
)
StructuredOutputsParams.__init__ = _INIT  # type: ignore[method-assign]


def structured(value: Any) -> StructuredOutputsParams | None:
    """Returns the value of `SamplingParams.structured_outputs`, which may be a mapping.

    Raises:
      UserError: it is neither that nor `StructuredOutputsParams`.
    """
    if value is None or isinstance(value, StructuredOutputsParams):
        return value
    if not isinstance(value, Mapping):
        raise UserError(
            f"structured_outputs={short(value)} must be StructuredOutputsParams or a mapping such "
            'as {"json": {...}}'
        )
    return StructuredOutputsParams(**{str(name): item for name, item in value.items()})


def _schema_text(value: Any) -> str:
    schema = value
    if isinstance(value, str):
        _check_text("json", value)
        try:
            schema = json_.loads(value)
        except (ValueError, RecursionError) as error:
            raise UserError(f"the JSON schema is not JSON ({error})") from None
    if not isinstance(schema, Mapping | bool):
        raise UserError(f"the JSON schema is {short(schema)}; it must be an object")
    try:
        text = json_.dumps(schema, allow_nan=False, default=dict)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"the JSON schema cannot be written as JSON ({error})") from None
    _check_text("json", text)
    return text


def _choices(value: Any) -> tuple[str, ...]:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence) or not value:
        raise UserError(f"choice={short(value)} must be a list of at least one text")
    for each in value:
        _check_text("a text of choice", each)
        if not each:
            raise UserError("a text of choice is empty; give it at least one character")
    _check_text("choice", "".join(value))
    return tuple(dict.fromkeys(value))


def _check_text(name: str, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, str):
        raise UserError(f"{name}={short(value)} must be text")
    if len(value) > _MOST_CHARACTERS:
        raise UserError(f"{name} has {len(value)} characters; give at most {_MOST_CHARACTERS}")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise UserError(f"{name} has half a surrogate pair, which no text contains; remove it")


# The names of the fields, for bodies of requests.
FIELDS = frozenset(field.name for field in fields(StructuredOutputsParams))
