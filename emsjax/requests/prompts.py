"""Prompts in Python, normalised to text, token ids or messages."""

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from emsjax.errors import UserError, short
from emsjax.requests.content import is_message, joined_parts
from emsjax.requests.sampling_params import SamplingParams
from emsjax.requests.vllm_names import refuse
from emsjax.requests.vllm_requests import PROMPT

Message = Mapping[str, Any]
Prompt = str | Sequence[int] | Sequence[Message] | Mapping[str, Any]

_FORMS = "text, token ids, or messages with 'role' and 'content'"
# The keys of a prompt given as a dictionary, as in vLLM and in JSON lines.
_KEYS = ("prompt", "prompt_token_ids", "messages")


def prompt_list(prompts: Any) -> list[Any]:
    """Returns a list of prompts, given many prompts or a single one in any form.

    Raises:
      UserError: the argument is neither a prompt nor an iterable of prompts.
    """
    prompts = _plain(prompts)
    if isinstance(prompts, str) or _is_prompt_mapping(prompts):
        return [prompts]
    if isinstance(prompts, Mapping | bytes) or not isinstance(prompts, Iterable):
        raise UserError(f"prompts is {short(prompts)}; give {_FORMS}, or a list of those")
    many = list(prompts)
    first = _plain(many[0]) if many else None
    message = isinstance(first, Mapping) and not _is_prompt_mapping(first)
    return [many] if message or _is_whole(first) else many


def conversations(messages: Any) -> list[Any]:
    """Returns a list of conversations, given many or a single one.

    Raises:
      UserError: the argument has anything else than messages.
    """
    each = [
        prompt
        if isinstance(prompt, str | Mapping) or not isinstance(prompt, Iterable)
        else [*prompt]
        for prompt in map(_plain, prompt_list(messages))
    ]
    for conversation in each:
        for message in conversation if isinstance(conversation, list) else [conversation]:
            if not isinstance(message, Mapping) or _is_prompt_mapping(message):
                raise UserError(
                    f"chat takes messages with 'role' and 'content', not {short(message)}; use "
                    "generate for other prompts"
                )
    return each


def check_prompt(prompt: Any) -> str | tuple[int, ...] | list[Message]:
    """Returns one prompt as text, token ids or messages.

    Raises:
      UserError: the prompt has none of these forms, or its text is not valid Unicode.
    """
    prompt = _plain(prompt)
    if isinstance(prompt, str):
        return _check_text(prompt)
    if _is_prompt_mapping(prompt):
        return _of_mapping(prompt)
    if isinstance(prompt, Mapping | bytes) or not isinstance(prompt, Iterable):
        raise UserError(f"a prompt is {short(prompt)}; give {_FORMS}")
    items = [_plain(item) for item in prompt]
    if items and isinstance(items[0], Mapping):
        return [_check_message(message) for message in items]
    for item in items:
        if not _is_whole(item):
            raise UserError(f"a prompt has the token id {short(item)}; give whole numbers")
    return tuple(operator.index(item) for item in items)


def _is_prompt_mapping(value: Any) -> bool:
    """Whether the value is a prompt as a dictionary, rather than a message."""
    if not isinstance(value, Mapping) or "role" in value:
        return False
    return any(key in value for key in (*_KEYS, *(name for each in PROMPT for name in each.names)))


def _of_mapping(given: Mapping[str, Any]) -> str | tuple[int, ...] | list[Message]:
    """Returns the one prompt in a dictionary."""
    fields = {name: value for name, value in given.items() if value is not None}
    for name in [name for name in fields if name not in _KEYS]:
        if not refuse(name, fields.pop(name), PROMPT):
            raise UserError(f"a prompt has the key {short(name)}; give one of {', '.join(_KEYS)}")
    if len(fields) != 1:
        found = " and ".join(fields) or "no prompt"
        raise UserError(f"a prompt has {found}; give exactly one of {', '.join(_KEYS)}")
    ((name, value),) = fields.items()
    prompt = None if isinstance(value, Mapping) else check_prompt(value)
    kind = {"prompt": str, "prompt_token_ids": tuple, "messages": list}[name]
    # An empty list is token ids and messages alike, and refused later.
    if not isinstance(prompt, kind) and (prompt != () or name == "prompt"):
        what = {str: "text", tuple: "a list of token ids", list: "a list of messages"}[kind]
        raise UserError(f"{name} is {short(value)}; it must be {what}")
    return prompt  # type: ignore[return-value]


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
    if not isinstance(message, Mapping) or not is_message(message):
        raise UserError(f"the message {short(message)} must have a 'role' and a 'content'")
    given = message.get("content")
    content = joined_parts("" if given is None else given)
    if not isinstance(content, str):
        raise UserError(f"the content of the message {short(message)} must be text")
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
            raise UserError(f"sampling_params must be SamplingParams, not {short(params)}")
    if len(each) != count:
        raise UserError(
            f"{len(each)} sampling_params do not match {count} prompts; give one, or one per prompt"
        )
    return each
