"""The prompt in a line of JSON, read the same way by `generate`, `bench` and `train`."""

import json
from collections.abc import Sequence
from typing import Any, NoReturn

from emsjax.errors import UserError
from emsjax.host.json_text import to_json
from emsjax.requests.content import is_message, joined_parts

Prompt = str | list[int] | list[dict[str, Any]]
Record = dict[str, Any]

# The deepest nesting of lists and objects in a line.
DEEPEST = 100
PROMPT_KEYS = ("prompt", "prompt_token_ids", "messages", "turns")


def parse(raw: bytes) -> Any:
    """Parses the JSON value of one line strictly: NaN and Infinity are refused.

    Raises:
      ValueError: the line is not JSON, not UTF-8, or nested more than `DEEPEST` times.
    """
    try:
        value = json.loads(raw.decode("utf-8-sig").strip(), parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    # Python would fail later, wherever the value is written or shown with less stack left.
    if raw.count(b"[") + raw.count(b"{") > DEEPEST and not _is_shallow(value):
        raise ValueError("nested too deeply")
    return value


def _is_shallow(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            if isinstance(outer, list | dict)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return not any(isinstance(each, list | dict) for each in level)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def read_object(raw: bytes) -> Record:
    """Parses one line as a JSON object and drops its null fields, which count as left out.

    Raises:
      UserError: the line is not UTF-8, not JSON, or not an object.
    """
    try:
        value = parse(raw)
    except UnicodeDecodeError:
        raise UserError("not UTF-8 text; save the file as UTF-8.") from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"not JSON ({error.msg} at column {error.colno}); write one object per line."
        ) from None
    except ValueError as error:
        raise UserError(f"not JSON ({error}); write one object per line.") from None
    if not isinstance(value, dict):
        raise UserError(f"not a JSON object but {_kind(value)}; write one object per line.")
    return {name: item for name, item in value.items() if item is not None}


def prompt_key(fields: Record, keys: Sequence[str] = PROMPT_KEYS) -> str:
    """Returns the one key of `keys` that the object has.

    Raises:
      UserError: the object has none of them, or more than one.
    """
    given = [name for name in keys if name in fields]
    if len(given) != 1:
        found = " and ".join(given) if given else "no prompt"
        raise UserError(f"the object has {found}; give exactly one of {', '.join(keys)}.")
    return given[0]


def take_prompt(fields: Record) -> Prompt:
    """Removes the prompt from an object's fields, and returns it checked.

    Args:
      fields: an object with exactly one of `prompt` (text), `prompt_token_ids` (whole numbers),
        `messages` (objects with role and content) and `turns` (texts of a user, of which only
        the first is used, as in Spec-Bench).

    Raises:
      UserError: the object has no prompt or several, or its prompt is malformed.
    """
    key = prompt_key(fields)
    value = fields.pop(key)
    if key == "prompt":
        if isinstance(value, list):
            raise UserError(
                "prompt must be text, not a list; give token ids as prompt_token_ids, and a "
                "conversation as messages."
            )
        return check_text("prompt", value)
    if key == "prompt_token_ids":
        return _token_ids(value)
    return _messages(value) if key == "messages" else _first_turn(value)


def check_text(name: str, value: object) -> str:
    """Returns the value if it is text that UTF-8 can encode.

    Raises:
      UserError: it is not; the message calls it `name`.
    """
    if not isinstance(value, str):
        raise UserError(f"{name} must be text, not {_kind(value)}.")
    try:
        value.encode()
    except UnicodeEncodeError:
        # JSON escapes and command line arguments can hold lone surrogates, which no tokenizer
        # can read.
        raise UserError(
            f"{name} has a character that UTF-8 cannot encode (half a surrogate pair); remove it."
        ) from None
    return value


def _kind(value: object) -> str:
    names = {
        str: "text",
        list: "a list",
        dict: "an object",
        bool: "true or false",
        type(None): "null",
    }
    return names.get(type(value), "a number")


def _token_ids(value: object) -> list[int]:
    # `type` and not `isinstance`: true and false are integers to Python.
    whole = isinstance(value, list) and all(type(item) is int for item in value)
    if not whole:
        raise UserError("prompt_token_ids must be a list of whole numbers.")
    return value  # type: ignore[return-value]


def _messages(value: object) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise UserError("messages must be a non-empty list of objects with role and content.")
    messages = [_message(item) for item in value]
    # Fields other than role and content may end up in the prompt too.
    check_text("messages", to_json(messages, ensure_ascii=False))
    return messages


def _message(item: object) -> dict[str, Any]:
    """Checks one message; a chat template may read more fields than role and content."""
    if not isinstance(item, dict) or not is_message(item):
        raise UserError("each of messages must be an object with role and content.")
    # Templates test whether a field such as `tool_calls` is present, not whether it is null.
    given = {name: part for name, part in item.items() if part is not None}
    check_text("role of a message", given.get("role"))
    content = joined_parts(given.get("content", ""))
    return given | {"content": check_text("content of a message", content)}


def _first_turn(value: object) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise UserError("turns must be a non-empty list of texts.")
    return [{"role": "user", "content": check_text("the first of turns", value[0])}]
