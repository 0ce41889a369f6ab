"""JSON lines: one request a line in, one record a line out."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from emsjax.errors import UserError
from emsjax.requests.outputs import CompletionOutput, Logprob, RequestOutput
from emsjax.requests.sampling_params import SamplingParams

LineId = str | int
Prompt = str | list[int] | list[dict[str, Any]]
Record = dict[str, Any]

_PROMPT_FIELDS = ("prompt", "prompt_token_ids", "messages")


@dataclass(frozen=True)
class Line:
    """A request as its line asks for it, not yet tokenised.

    Attributes:
      id: what the result is called.
      number: the line's, counted from 1.
      where: how messages name the line to a person.
      prompt: text, token ids or chat messages.
      params: the line's own sampling parameters over the run's.
    """

    id: LineId
    number: int
    where: str
    prompt: Prompt
    params: SamplingParams


@dataclass(frozen=True)
class BadLine:
    """A line that cannot be run.

    Attributes:
      id: what it is called; None where that cannot be read, or names another line.
      number: the line's, counted from 1.
      error: the sentence that says why.
    """

    id: LineId | None
    number: int
    error: str


def key(line_id: LineId | None) -> str:
    """Write an id as one string, for sets and request ids; the number 1 and the text "1" differ."""
    return json.dumps(line_id)


def digest(prompt: Prompt) -> str:
    """Write a prompt of any kind in a few characters, which another prompt will not have."""
    canonical = json.dumps(prompt, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def read(
    stream: Iterable[bytes | None], defaults: Mapping[str, Any]
) -> Iterator[Line | BadLine | None]:
    """Read requests one at a time; blank lines are skipped, bad ones come out as `BadLine`.

    A line is an object with exactly one of `prompt` (text), `prompt_token_ids` and `messages`,
    optionally `id` (text or a whole number; the line's number, counted from 1, where it is left
    out) and any field of `SamplingParams`. A field that is null counts as left out.

    Args:
      stream: the lines, UTF-8; None, for "none is there yet", is passed on.
      defaults: sampling parameters by name, for what a line leaves out; they have to go together
        only with what the line says.
    """
    seen: set[str] = set()
    number = 0
    for raw in stream:
        if raw is None:
            yield None
            continue
        number += 1
        if raw.strip():
            yield _read_line(raw, number, defaults, seen)


def _read_line(
    raw: bytes, number: int, defaults: Mapping[str, Any], seen: set[str]
) -> Line | BadLine:
    where = f"line {number}"
    line_id: LineId | None = None
    try:
        fields = _object(raw)
        line_id = _take_id(fields.pop("id", number), seen)
        prompt = _prompt(fields)
        params = SamplingParams.from_mapping({**defaults, **fields})
        return Line(line_id, number, where, prompt, params)
    except UserError as error:
        return BadLine(line_id, number, f"{where}: {error}")


def parse(raw: bytes) -> Any:
    """One line's JSON value, strictly: no NaN, no Infinity.

    Raises:
      ValueError: it is not JSON, or not UTF-8.
    """
    try:
        return json.loads(raw.decode("utf-8-sig").strip(), parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _object(raw: bytes) -> Record:
    try:
        value = parse(raw)
    except UnicodeDecodeError:
        raise UserError("not UTF-8 text; save the file as UTF-8.") from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"not JSON ({error.msg} at column {error.colno}); write one object a line."
        ) from None
    except ValueError as error:
        raise UserError(f"not JSON ({error}); write one object a line.") from None
    if not isinstance(value, dict):
        raise UserError(f"not a JSON object but {_kind(value)}; write one object a line.")
    return {name: item for name, item in value.items() if item is not None}


def _kind(value: object) -> str:
    names = {str: "text", list: "a list", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _take_id(value: object, seen: set[str]) -> LineId:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UserError(f"the id {value!r} must be text or a whole number.")
    if key(value) in seen:
        raise UserError(
            f"the id {value!r} was used before, and a line without one has its number; give each "
            "line its own."
        )
    seen.add(key(value))
    return value


def _prompt(fields: Record) -> Prompt:
    """Take the prompt out of a line's fields."""
    given = [name for name in _PROMPT_FIELDS if name in fields]
    if len(given) != 1:
        found = " and ".join(given) if given else "no prompt"
        raise UserError(f"has {found}; give exactly one of {', '.join(_PROMPT_FIELDS)}.")
    value = fields.pop(given[0])
    if given[0] == "prompt":
        return check_text("prompt", value)
    return _token_ids(value) if given[0] == "prompt_token_ids" else _messages(value)


def check_text(name: str, value: object) -> str:
    """Return the value, if it is text that can be written as UTF-8.

    Raises:
      UserError: it is not.
    """
    if not isinstance(value, str):
        raise UserError(f"{name} must be text, not {_kind(value)}.")
    try:
        value.encode()
    except UnicodeEncodeError:
        # JSON escapes and the bytes of a command line can hold what no tokenizer can read.
        raise UserError(f"{name} is not text that UTF-8 can write; mend it.") from None
    return value


def _token_ids(value: object) -> list[int]:
    whole = isinstance(value, list) and all(type(item) is int for item in value)
    if not whole:
        raise UserError("prompt_token_ids must be a list of whole numbers.")
    return value  # type: ignore[return-value]


def _messages(value: object) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise UserError("messages must be a list of objects with role and content, not empty.")
    messages = [_message(item) for item in value]
    check_text("messages", json.dumps(messages, ensure_ascii=False))
    return messages


def _message(item: object) -> dict[str, Any]:
    """One message; a chat template may look at more fields than the two we know."""
    if not isinstance(item, dict) or not {"role", "content"} <= item.keys():
        raise UserError("each of messages must be an object with role and content.")
    if isinstance(item["content"], list):
        raise UserError(
            "content of a message is a list of parts, which is not there yet; give its text alone."
        )
    # A template asks "is there a tool call", not "is it null". Logs have a null content beside one.
    given = {name: part for name, part in item.items() if part is not None}
    check_text("role of a message", given.get("role"))
    return given | {"content": check_text("content of a message", given.get("content", ""))}


def result(output: RequestOutput, prompt_digest: str) -> Record:
    """Make the record of a finished request, whose `request_id` was made by `key`."""
    first, *others = map(_completion, output.outputs)
    several = {"outputs": [first, *others]} if others else {}
    return {
        "id": json.loads(output.request_id),
        "prompt": output.prompt,
        **first,
        **several,
        "metrics": asdict(output.metrics),
        "prompt_digest": prompt_digest,
    }


def _completion(completion: CompletionOutput) -> Record:
    """What is known of one output; what there is not always only where there is."""
    record: Record = {
        "text": completion.text,
        "token_ids": completion.token_ids,
        "finish_reason": completion.finish_reason,
    }
    if completion.stop_reason is not None:
        record["stop_reason"] = completion.stop_reason
    if completion.logprobs is not None:
        tokens = zip(completion.token_ids, completion.logprobs, strict=True)
        record["logprobs"] = [_logprobs(token, table) for token, table in tokens]
    return record


def _logprobs(token: int, table: Mapping[int, Logprob]) -> Record:
    """A token's own, and the likeliest ones beside it in order."""
    likeliest = sorted(table, key=lambda other: table[other].rank)
    top = [_logprob(other, table[other]) for other in likeliest]
    return {**_logprob(token, table[token]), "top_logprobs": top}


def _logprob(token: int, found: Logprob) -> Record:
    return {"token_id": token, "token": found.decoded_token, "logprob": found.logprob}


def failure(line: Line | BadLine, error: str) -> Record:
    """Make the record of a line that was bad."""
    return {"id": line.id, "line": line.number, "error": error}


def encode(record: Record) -> bytes:
    """Write a record as one line, readable in any script."""
    try:
        return json.dumps(record, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair in an id, say
        return json.dumps(record).encode() + b"\n"
