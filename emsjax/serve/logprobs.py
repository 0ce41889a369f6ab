"""Log-probabilities in the two forms of the OpenAI API."""

from collections.abc import Mapping, Sequence
from typing import Any

from emsjax.requests.jsonl import LOWEST_LOGPROB
from emsjax.requests.outputs import Logprob

Table = Mapping[int, Logprob]


def of_completion(
    tokens: Sequence[int], tables: Sequence[Table | None], offset: int, first: str = ""
) -> dict[str, Any]:
    """Returns the `logprobs` of a choice of `/v1/completions`.

    Args:
      tokens: the tokens of the text, which with `echo` begin with the prompt's.
      tables: for each token the table of `CompletionOutput.logprobs`; None for the first of a text.
      offset: characters of the text before the first token.
      first: the text of a token without a table.
    """
    pairs = list(zip(tokens, tables, strict=True))
    texts = [first if table is None else _text(token, table) for token, table in pairs]
    offsets = []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    return {
        "text_offset": offsets,
        "token_logprobs": [table and _value(table[token]) for token, table in pairs],
        "tokens": texts,
        "top_logprobs": [table and _by_text(table) for table in tables],
    }


def of_prompt(tables: Sequence[Table | None]) -> list[dict[str, Any] | None]:
    """Returns `prompt_logprobs` in vLLM's form.

    Args:
      tables: for each token of the prompt its table; None for the first.
    """
    return [
        None if table is None else {str(token): _figures(table[token]) for token in table}
        for table in tables
    ]


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


def _by_text(table: Table) -> dict[str, float]:
    """Returns the log-probabilities by text. Of tokens with the same text, the first counts."""
    found: dict[str, float] = {}
    for token, each in table.items():
        found.setdefault(_text(token, table), _value(each))
    return found


def _figures(found: Logprob) -> dict[str, Any]:
    return {
        "logprob": _value(found),
        "rank": found.rank,
        "decoded_token": found.decoded_token,
    }


def _top(table: Table, count: int) -> list[dict[str, Any]]:
    likeliest = sorted(table, key=lambda token: table[token].rank)[:count]
    return [_entry(token, table[token]) for token in likeliest]


def _entry(token: int, found: Logprob) -> dict[str, Any]:
    text = _text(token, {token: found})
    return {"token": text, "logprob": _value(found), "bytes": list(text.encode())}


def _text(token: int, table: Table) -> str:
    text = table[token].decoded_token
    return f"token_id:{token}" if text is None else text


def _value(found: Logprob) -> float:
    return max(LOWEST_LOGPROB, found.logprob)
