"""Reads the bodies of requests: the fields of the OpenAI API, and those that vLLM adds."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from emsjax.errors import UserError, short
from emsjax.requests.chat import ChatOptions
from emsjax.requests.prompt_line import parse
from emsjax.requests.prompts import Prompt, conversations, prompt_list
from emsjax.requests.sampling_params import SamplingParams
from emsjax.requests.vllm_names import Foreign, refuse
from emsjax.serve.errors import ApiError
from emsjax.serve.tool_choice import NO_TOOLS, ToolChoice, take_tool_choice

Fields = dict[str, Any]

# Asks for the origin of each token; in an answer, it has that name, too.
TRACE = "emsjax_trace"
# The API's own defaults, where they differ from those of `SamplingParams`.
_TEMPERATURE = 1.0
# Fields that say something about the client, or about a service with many machines.
_IGNORED = frozenset(
    {
        *("user", "metadata", "store", "service_tier", "safety_identifier"),
        *("prompt_cache_key", "parallel_tool_calls", "request_id"),
    }
)
_FOREIGN = (
    Foreign("there is no counterpart: models continue a text", {"suffix": ("",)}),
    Foreign(
        "give guided_json, guided_regex or guided_choice",
        {"guided_grammar": (), "guided_decoding_backend": ("auto", "outlines")},
    ),
    Foreign("give tools and tool_choice", {"functions": (), "function_call": ("none", "auto")}),
    Foreign("tools are called in chats", {"tool_choice": ("none", "auto")}),
    Foreign("there is no counterpart: models write text only", {"modalities": (["text"],)}),
    Foreign("give token ids to choose the special tokens", {"add_special_tokens": ()}),
    Foreign("there is no counterpart: all prompts share what the cache holds", {"cache_salt": ()}),
    Foreign("there is no counterpart: the template is the model's", {"chat_template": ()}),
    Foreign("read the token from its text", {"return_tokens_as_token_ids": (False,)}),
)
# A template is a program, which only whoever runs the server may choose.
_CHAT = frozenset(each.name for each in fields(ChatOptions)) - {"chat_template"}


@dataclass(frozen=True)
class Asked:
    """What a body asks for.

    Attributes:
      prompts: one or more.
      params: how to decode each.
      chat: how conversations are rendered.
      stream: whether text comes as it is generated.
      include_usage: whether a stream ends with the numbers of tokens.
      echo: whether the text begins with the prompt.
      only_echo: whether it ends there, too.
      priority: requests with a lower number get slots first.
      tools: which calls of tools are read from the text, and whether there must be any.
      trace: whether the answer says where each token came from.
    """

    prompts: Sequence[Prompt]
    params: SamplingParams
    chat: ChatOptions | None = None
    stream: bool = False
    include_usage: bool = False
    echo: bool = False
    only_echo: bool = False
    priority: int = 0
    tools: ToolChoice = NO_TOOLS
    trace: bool = False


def read_fields(body: bytes) -> Fields:
    """Parses a body as a JSON object and drops its null fields, which count as left out.

    Raises:
      UserError: it is not one.
    """
    try:
        value = parse(body)
    except UnicodeDecodeError:
        raise UserError("the body is not UTF-8; encode it so") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise UserError(f"the body is not JSON ({error.msg} at {place}); send an object") from None
    except ValueError as error:
        raise UserError(f"the body is not JSON ({error}); send an object") from None
    if not isinstance(value, dict):
        raise UserError(f"the body is {short(value)}; it must be a JSON object")
    return {name: item for name, item in value.items() if item is not None}


def check_model(given: Fields, name: str) -> None:
    """Removes the model's name from the fields, and checks that it is the one served.

    Raises:
      ApiError: another model is asked for.
    """
    model = given.pop("model", name)
    if model != name:
        raise unknown_model(model, name)


def unknown_model(model: object, name: str) -> ApiError:
    """Returns the error for a model that is not served."""
    message = f"the model {short(model)} does not exist; this server has {short(name)}"
    return ApiError(404, message, code="model_not_found", param="model")


def completion_of(given: Fields) -> Asked:
    """Reads the fields of `/v1/completions`.

    Raises:
      UserError: a field is missing, unknown or out of range.
    """
    prompts = _prompts(given.pop("prompt", None))
    echo = _flag(given, "echo")
    if echo and "logprobs" in given:
        given.setdefault("prompt_logprobs", given["logprobs"])
    # Evaluation harnesses ask for no tokens but the prompt's. One is written, and left out.
    only_echo = echo and type(given.get("max_tokens")) is int and given["max_tokens"] == 0
    if only_echo:
        given["max_tokens"] = 1
    return _asked(given, prompts, echo=echo, only_echo=only_echo)


def chat_of(given: Fields) -> Asked:
    """Reads the fields of `/v1/chat/completions`.

    Raises:
      UserError: a field is missing, unknown or out of range.
    """
    messages = messages_of(given)
    _rename_limit(given)
    given.setdefault("max_tokens", None)  # the rest of the context
    top = given.pop("top_logprobs", None)
    if _flag(given, "logprobs"):
        given["logprobs"] = 0 if top is None else top
    elif top is not None:
        raise UserError("top_logprobs needs logprobs; set logprobs to true")
    tools = take_tool_choice(given)
    return _asked(given, [messages], chat=chat_options(given), tools=tools)


def messages_of(given: Fields) -> Any:
    """Removes the messages from the fields, and returns them.

    Raises:
      UserError: there are none, or they are not a list of messages.
    """
    messages = given.pop("messages", None)
    if not isinstance(messages, list) or not messages:
        raise UserError("messages must be a list of at least one message with role and content")
    if not all(isinstance(each, Mapping) for each in messages):
        raise UserError("each of messages must be an object with role and content")
    (conversation,) = conversations(messages)
    return conversation


def chat_options(given: Fields) -> ChatOptions:
    """Removes the options of a conversation from the fields, and returns them."""
    return ChatOptions(**{name: given.pop(name) for name in _CHAT & given.keys()})


def token_ids(value: object, name: str) -> list[int]:
    """Returns a field that must be a list of token ids.

    Raises:
      UserError: it is not.
    """
    if not isinstance(value, list) or not all(type(each) is int for each in value):
        raise UserError(f"{name} must be a list of token ids, not {short(value)}")
    return value


def refuse_others(given: Fields, route: str) -> None:
    """Checks that no field is left, other than with the value that it has anyway.

    Raises:
      UserError: there is one.
    """
    for name, value in given.items():
        if name not in _IGNORED and not refuse(name, value, _FOREIGN):
            raise UserError(f"{short(name)} is not a field of {route}; leave it out")


def _prompts(value: object) -> list[Prompt]:
    if not isinstance(value, str | list) or value == []:
        raise UserError("prompt must be a text, a list of texts, token ids or lists of token ids")
    many = prompt_list(value)
    for each in many:
        if not isinstance(each, str):
            token_ids(each, "each prompt that is not text")
    return many


def _asked(
    given: Fields,
    prompts: list[Prompt],
    *,
    echo: bool = False,
    only_echo: bool = False,
    chat: ChatOptions | None = None,
    tools: ToolChoice = NO_TOOLS,
) -> Asked:
    stream, trace = _flag(given, "stream"), _flag(given, TRACE)
    if trace and only_echo:
        raise UserError(f"{TRACE} is about generated tokens; leave it out, or raise max_tokens")
    usage = _include_usage(given, stream)
    _take_structure(given, {} if tools.must is None else {"tool_choice": tools.must})
    priority = given.pop("priority", 0)
    if type(priority) is not int or abs(priority) >= 2**31:
        raise UserError(f"priority={short(priority)} must be a whole number")
    own = {
        name: value
        for name, value in given.items()
        if name not in _IGNORED and not refuse(name, value, _FOREIGN)
    }
    params = SamplingParams.from_mapping({"temperature": _TEMPERATURE, **own})
    if not params.detokenize:
        raise UserError("detokenize=False leaves out the text, which answers hold; leave it out")
    if stream and params.prompt_logprobs is not None:
        raise UserError(
            "a stream has no log-probabilities of the prompt; leave out stream, or prompt_logprobs "
            "and echo with logprobs"
        )
    return Asked(
        prompts, params, chat, stream, usage, echo, only_echo, priority, tools, trace=trace
    )


def _take_structure(given: Fields, found: dict[str, Any]) -> None:
    """Replaces the fields that say what the text may be by `structured_outputs`.

    Args:
      given: the fields.
      found: what the text must be for another reason.

    Raises:
      UserError: several of them are given, or one is not of its form.
    """
    if "structured_outputs" in given:
        found["structured_outputs"] = given.pop("structured_outputs")
    if "response_format" in given:
        wanted = _response_format(given.pop("response_format"))
        if wanted is not None:
            found["response_format"] = wanted
    white = given.pop("guided_whitespace_pattern", None)
    for name in ("json", "regex", "choice"):
        if f"guided_{name}" in given:
            found[f"guided_{name}"] = {name: given.pop(f"guided_{name}")}
            if white is not None:
                found[f"guided_{name}"]["whitespace_pattern"] = white
    if len(found) > 1:
        raise UserError(f"{' and '.join(found)} say what the text may be; give one of them")
    if found:
        (given["structured_outputs"],) = found.values()


def _response_format(value: object) -> dict[str, Any] | None:
    """Returns a `response_format` as `structured_outputs`; None for plain text."""
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return {"json_object": True}
    inner = value.get("json_schema") if isinstance(value, Mapping) else None
    if kind == "json_schema" and isinstance(inner, Mapping) and "schema" in inner:
        return {"json": inner["schema"]}
    raise UserError(
        f"response_format={short(value)} is not known; give a type of text, json_object, or "
        "json_schema with a schema in json_schema"
    )


def _rename_limit(given: Fields) -> None:
    limit = given.pop("max_completion_tokens", None)
    if limit is not None and given.setdefault("max_tokens", limit) != limit:
        raise UserError("max_completion_tokens is the new name of max_tokens; give one of them")


def _include_usage(given: Fields, stream: bool) -> bool:
    options = given.pop("stream_options", None)
    if options is None:
        return False
    if not isinstance(options, Mapping) or not options.keys() <= {"include_usage"}:
        raise UserError(f"stream_options={short(options)} may only have include_usage")
    if not stream:
        raise UserError("stream_options needs stream; set stream to true")
    return _flag(dict(options), "include_usage")


def _flag(given: Fields, name: str) -> bool:
    """Removes a switch from the fields, and returns it; false if it is left out."""
    value = given.pop(name, False)
    if not isinstance(value, bool):
        raise UserError(f"{name}={short(value)} must be true or false")
    return value
