"""Log-probabilities in the two forms of the OpenAI API."""

from collections.abc import Mapping, Sequence
from typing import Any

from emsjax.requests.jsonl import LOWEST_LOGPROB
from emsjax.requests.outputs import Logprob

Table = Mapping[int, Logprob]


def of_completion(tokens: Sequence[int], tables: Sequence[Table], offset: int) -> dict[str, Any]:
    """Returns the `logprobs` of a choice of `/v1/completions`.

    Args:
      tokens: the generated tokens.
      tables: for each token the table of `CompletionOutput.logprobs`.
      offset: characters of the text before the first token.
    """
    texts = [_text(token, table[token]) for token, table in zip(tokens, tables, strict=True)]
    offsets = []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    return {
        "text_offset": offsets,
        "token_logprobs": [
            _value(table[token]) for token, table in zip(tokens, tables, strict=True)
        ],
        "tokens": texts,
        "top_logprobs": [
            {_text(other, found): _value(found) for other, found in table.items()}
            for table in tables
        ],
    }


def of_chat(tokens: Sequence[int], tables: Sequence[Table], count: int) -> dict[str, Any]:
    """Returns the `logprobs` of a choice of `/v1/chat/completions`.

    Args:
      tokens: the generated tokens.
      tables: for each token the table of `CompletionOutput.logprobs`.
      count: how many of the likeliest tokens to list.
    """
    return {
        "content": [
            {**_entry(token, table[token]), "top_logprobs": _top(table, count)}
            for token, table in zip(tokens, tables, strict=True)
        ]
    }


def _top(table: Table, count: int) -> list[dict[str, Any]]:
    likeliest = sorted(table, key=lambda token: table[token].rank)[:count]
    return [_entry(token, table[token]) for token in likeliest]


def _entry(token: int, found: Logprob) -> dict[str, Any]:
    text = _text(token, found)
    return {"token": text, "logprob": _value(found), "bytes": list(text.encode())}


def _text(token: int, found: Logprob) -> str:
    return f"token_id:{token}" if found.decoded_token is None else found.decoded_token


def _value(found: Logprob) -> float:
    return max(LOWEST_LOGPROB, found.logprob)
