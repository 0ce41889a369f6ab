"""Prompts in Python, normalised to text, token ids or messages."""

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from emsjax.errors import UserError
from emsjax.requests.sampling_params import SamplingParams

Message = Mapping[str, Any]
Prompt = str | Sequence[int] | Sequence[Message]

_FORMS = "text, token ids, or messages with 'role' and 'content'"


def prompt_list(prompts: Any) -> list[Any]:
    """Returns a list of prompts, given many prompts or a single one in any form.

    Raises:
      UserError: the argument is neither a prompt nor an iterable of prompts.
    """
    prompts = _plain(prompts)
    if isinstance(prompts, str):
        return [prompts]
    if isinstance(prompts, Mapping | bytes) or not isinstance(prompts, Iterable):
        raise UserError(f"prompts is {prompts!r}; give {_FORMS}, or a list of those")
    many = list(prompts)
    first = _plain(many[0]) if many else None
    return [many] if isinstance(first, Mapping) or _is_whole(first) else many


def check_prompt(prompt: Any) -> str | tuple[int, ...] | list[Message]:
    """Returns one prompt as text, token ids or messages.

    Raises:
      UserError: the prompt has none of these forms, or its text is not valid Unicode.
    """
    prompt = _plain(prompt)
    if isinstance(prompt, str):
        return _check_text(prompt)
    if isinstance(prompt, Mapping | bytes) or not isinstance(prompt, Iterable):
        raise UserError(f"a prompt is {prompt!r}; give {_FORMS}")
    items = [_plain(item) for item in prompt]
    if items and isinstance(items[0], Mapping):
        return [_check_message(message) for message in items]
    for item in items:
        if not _is_whole(item):
            raise UserError(f"a prompt has the token id {item!r}; give whole numbers")
    return tuple(operator.index(item) for item in items)


def _plain(value: Any) -> Any:
    """Converts arrays of any library to lists and numbers."""
    return value.tolist() if hasattr(value, "tolist") else value


def _is_whole(value: Any) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool)


def _check_text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(
            "the prompt has a character that UTF-8 cannot encode (half a surrogate pair); remove it"
        ) from None
    return text


def _check_message(message: Any) -> Message:
    """Checks the role and content of a message; other fields are up to the chat template."""
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        raise UserError(f"the message {message!r} must have a 'role' and a 'content'")
    # Chat logs have a null content next to a tool call.
    content = "" if message["content"] is None else message["content"]
    if not isinstance(content, str):
        raise UserError(f"the content of the message {message!r} must be text")
    return {**message, "content": _check_text(content)}


def params_of_each(given: Any, count: int) -> list[SamplingParams]:
    """Returns one `SamplingParams` for each of `count` prompts.

    Raises:
      UserError: `given` is neither one `SamplingParams` nor `count` of them.
    """
    if given is None or isinstance(given, SamplingParams):
        return [given or SamplingParams()] * count
    each = list(given) if isinstance(given, Sequence) else [given]
    for params in each:
        if not isinstance(params, SamplingParams):
            raise UserError(f"sampling_params must be SamplingParams, not {params!r}")
    if len(each) != count:
        raise UserError(
            f"{len(each)} sampling_params do not match {count} prompts; give one, or one per prompt"
        )
    return each
