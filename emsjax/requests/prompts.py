"""The forms a prompt may take in Python, brought to three: text, token ids, messages."""

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from emsjax.errors import UserError
from emsjax.requests.sampling_params import SamplingParams

Message = Mapping[str, Any]
Prompt = str | Sequence[int] | Sequence[Message]

_FORMS = "text, token ids, or messages with 'role' and 'content'"


def prompt_list(prompts: Any) -> list[Any]:
    """Many prompts, or one alone in any of its forms, as a list.

    Raises:
      UserError: it is nothing that can hold prompts.
    """
    prompts = _plain(prompts)
    if isinstance(prompts, str):
        return [prompts]
    if isinstance(prompts, Mapping | bytes) or not isinstance(prompts, Iterable):
        raise UserError(f"prompts are {_FORMS}, or a list of those; {prompts!r} is not")
    many = list(prompts)
    first = _plain(many[0]) if many else None
    return [many] if isinstance(first, Mapping) or _is_whole(first) else many


def check_prompt(prompt: Any) -> str | tuple[int, ...] | list[Message]:
    """One prompt as text, as token ids, or as messages.

    Raises:
      UserError: it is none of these, or text that is not Unicode.
    """
    prompt = _plain(prompt)
    if isinstance(prompt, str):
        return _check_text(prompt)
    if isinstance(prompt, Mapping | bytes) or not isinstance(prompt, Iterable):
        raise UserError(f"a prompt is {_FORMS}; {prompt!r} is not")
    items = [_plain(item) for item in prompt]
    if items and isinstance(items[0], Mapping):
        return [_check_message(message) for message in items]
    for item in items:
        if not _is_whole(item):
            raise UserError(f"a prompt of token ids has {item!r} in it, which is no whole number")
    return tuple(operator.index(item) for item in items)


def _plain(value: Any) -> Any:
    """Arrays of any library as lists and numbers."""
    return value.tolist() if hasattr(value, "tolist") else value


def _is_whole(value: Any) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool)


def _check_text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError("the prompt is not text that UTF-8 can write; mend it") from None
    return text


def _check_message(message: Any) -> Message:
    """A message with text in it; further fields are the chat template's business."""
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        raise UserError(f"the message {message!r} must have a 'role' and a 'content'")
    content = "" if message["content"] is None else message["content"]
    if not isinstance(content, str):
        raise UserError(f"the content of the message {message!r} must be text")
    return {**message, "content": _check_text(content)}


def params_of_each(given: Any, count: int) -> list[SamplingParams]:
    """One `SamplingParams` for each of `count` prompts."""
    if given is None or isinstance(given, SamplingParams):
        return [given or SamplingParams()] * count
    each = list(given) if isinstance(given, Sequence) else [given]
    for params in each:
        if not isinstance(params, SamplingParams):
            raise UserError(f"sampling_params must be SamplingParams, not {params!r}")
    if len(each) != count:
        raise UserError(f"{len(each)} sampling_params do not fit {count} prompts: give one each")
    return each
