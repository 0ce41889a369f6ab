"""JSON lines: one request per line in, one record per line out."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from emsjax.errors import UserError, short
from emsjax.host.json_text import to_json
from emsjax.requests.outputs import CompletionOutput, Logprob, RequestOutput
from emsjax.requests.prompt_line import Prompt, Record, read_object, take_prompt
from emsjax.requests.sampling_params import SamplingParams

LineId = str | int
# JSON has no infinity. As in vLLM's server, smaller log-probabilities are written as this one.
LOWEST_LOGPROB = -9999.0


@dataclass(frozen=True)
class Line:
    """A request as read from one line, not yet tokenised.

    Attributes:
      id: the id of its result.
      number: the line number, counted from 1.
      where: how messages refer to the line.
      prompt: text, token ids or chat messages.
      params: the run's sampling parameters, overridden by the line's own.
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
      id: the line's id; None if it cannot be read or already names another line.
      number: the line number, counted from 1.
      error: one sentence that says what is wrong.
    """

    id: LineId | None
    number: int
    error: str


def key(line_id: LineId | None) -> str:
    """Encodes an id as one string, for sets and request ids; keeps 1 and "1" distinct."""
    return to_json(line_id)


def digest(prompt: Prompt) -> str:
    """Hashes a prompt of any kind to 16 hexadecimal digits."""
    canonical = to_json(prompt, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def read(
    stream: Iterable[bytes | None], defaults: Mapping[str, Any]
) -> Iterator[Line | BadLine | None]:
    """Reads requests one at a time, skipping blank lines and reporting bad ones as `BadLine`.

    A line is an object with one prompt (see `take_prompt`), optionally an `id` (text or a whole
    number; the line number by default) and any fields of `SamplingParams`. A null field counts as
    left out.

    Args:
      stream: the lines, in UTF-8. None means that no line has arrived yet, and is passed on.
      defaults: sampling parameters by name, for those that a line leaves out. They are checked
        for contradictions only together with the line's own.
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
        fields = read_object(raw)
        line_id = _take_id(fields.pop("id", number), seen)
        prompt = take_prompt(fields)
        params = SamplingParams.from_mapping({**defaults, **fields})
        return Line(line_id, number, where, prompt, params)
    except UserError as error:
        return BadLine(line_id, number, str(UserError(f"{where}: {error}")))


def _take_id(value: object, seen: set[str]) -> LineId:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UserError(f"the id is {short(value)}; it must be text or a whole number.")
    if key(value) in seen:
        raise UserError(
            f"the id {short(value)} is already taken (a line without an id gets its line number); "
            "give each line a unique id."
        )
    seen.add(key(value))
    return value


def result(output: RequestOutput, prompt_digest: str) -> Record:
    """Makes the record of a finished request; its `request_id` must come from `key`."""
    first, *others = map(_completion, output.outputs)
    several = {"outputs": [first, *others]} if others else {}
    scored = {} if output.prompt_logprobs is None else {"prompt_logprobs": _of_prompt(output)}
    return {
        "id": json.loads(output.request_id),
        "prompt": output.prompt,
        **first,
        **several,
        **scored,
        "metrics": asdict(output.metrics),
        "prompt_digest": prompt_digest,
    }


def _completion(completion: CompletionOutput) -> Record:
    """Makes the record of one output, leaving out a `stop_reason` or `logprobs` of None."""
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


def _of_prompt(output: RequestOutput) -> list[Record | None]:
    """Makes the list for the prompt's tokens, of which the first has no log-probability."""
    tokens = zip(output.prompt_token_ids, output.prompt_logprobs or (), strict=True)
    return [None if table is None else _logprobs(token, table) for token, table in tokens]


def _logprobs(token: int, table: Mapping[int, Logprob]) -> Record:
    """The chosen token's log-probability, then those of the likeliest tokens in order."""
    likeliest = sorted(table, key=lambda other: table[other].rank)
    top = [_logprob(other, table[other]) for other in likeliest]
    return {**_logprob(token, table[token]), "top_logprobs": top}


def _logprob(token: int, found: Logprob) -> Record:
    logprob = max(LOWEST_LOGPROB, found.logprob)
    return {"token_id": token, "token": found.decoded_token, "logprob": logprob}


def failure(line: Line | BadLine, error: str) -> Record:
    """Makes the record of a bad line, or of a request that failed."""
    return {"id": line.id, "line": line.number, "error": error}


def encode(record: Record) -> bytes:
    """Encodes a record as one line that `--resume` can read, with non-ASCII text unescaped."""
    try:
        return to_json(record, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # for example half a surrogate pair in an id
        return to_json(record).encode() + b"\n"
