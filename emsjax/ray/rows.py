"""Rows of a dataset to requests, and results to columns, in the words of `ray.data.llm`.

Nothing here needs Ray.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from emsjax.errors import UserError
from emsjax.requests import jsonl
from emsjax.requests.outputs import RequestOutput
from emsjax.requests.prompt_line import PROMPT_KEYS, Prompt, take_prompt
from emsjax.requests.sampling_params import SamplingParams

# One column for each of the arrays of a batch, all of the same length.
Batch = Mapping[str, Any]
ERROR = "__inference_error__"


def rows_of(batch: Batch) -> list[dict[str, Any]]:
    """Returns the rows of a batch as Python values; an empty batch has none."""
    columns = {name: _plain(column) for name, column in batch.items()}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def read_row(
    row: Mapping[str, Any], defaults: Mapping[str, Any], id_column: str
) -> tuple[Prompt, SamplingParams, str]:
    """Returns the prompt of a row, its sampling parameters, and the id of its request.

    A row without a seed derives one from this id: the same as `python -m emsjax.generate` for a
    line with the same id. A row without an id has that of its prompt, wherever and whenever it
    runs.

    Args:
      row: has exactly one of `prompt`, `messages`, `prompt_token_ids` and `turns` that is not null,
        and perhaps `sampling_params`, a mapping.
      defaults: sampling parameters for those that a row leaves out or that are null there.
      id_column: where a row may have its id.

    Raises:
      UserError: the row has no prompt or several, or parameters that do not fit together.
    """
    fields = {key: row[key] for key in PROMPT_KEYS if row.get(key) is not None}
    prompt = take_prompt(_without_nulls(fields))
    own = row.get("sampling_params") or {}
    if not isinstance(own, Mapping):
        raise UserError("sampling_params must be a mapping of names to values.")
    given = {name: value for name, value in own.items() if value is not None}
    params = SamplingParams.from_mapping({**defaults, **given})
    if params.n != 1:
        raise UserError(f"n={params.n} does not fit in a row, which has one text; repeat the row.")
    for option in ("logprobs", "prompt_logprobs"):
        if getattr(params, option) is not None:
            raise UserError(f"{option} has no column in a row; leave it out.")
    name = row.get(id_column)
    known = isinstance(name, str | int) and not isinstance(name, bool)
    return prompt, params, jsonl.key(name) if known else jsonl.digest(prompt)


def with_results(batch: Batch, results: Sequence[RequestOutput | str]) -> dict[str, Any]:
    """Adds the results to a batch.

    Args:
      batch: the columns that came.
      results: for each row its result, or the error why there is none.

    Returns:
      The columns that came, and `generated_text`, `generated_tokens` (lists of token ids),
      `num_generated_tokens`, `num_input_tokens` and `__inference_error__`, which is empty if there
      is none.
    """
    made = [_columns(each) for each in results]
    tokens = np.empty(len(made), object)
    tokens[:] = [each["generated_tokens"] for each in made]
    return {
        **batch,
        "generated_text": np.array([each["generated_text"] for each in made], object),
        "generated_tokens": tokens,
        "num_generated_tokens": np.array([len(each) for each in tokens], np.int64),
        "num_input_tokens": np.array([each["num_input_tokens"] for each in made], np.int64),
        ERROR: np.array([each[ERROR] for each in made], object),
    }


def _columns(result: RequestOutput | str) -> dict[str, Any]:
    if isinstance(result, str):
        return {"generated_text": "", "generated_tokens": [], "num_input_tokens": 0, ERROR: result}
    (output,) = result.outputs
    return {
        "generated_text": output.text or "",
        "generated_tokens": list(output.token_ids),
        "num_input_tokens": len(result.prompt_token_ids),
        ERROR: output.error or "",
    }


def _plain(value: Any) -> Any:
    """Turns arrays and numbers of NumPy into lists and numbers of Python, at any depth."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _without_nulls(fields: dict[str, Any]) -> dict[str, Any]:
    """Drops the fields of messages that only other messages have: a table knows no missing ones."""
    messages = fields.get("messages")
    if isinstance(messages, list):
        fields["messages"] = [
            {name: item for name, item in message.items() if item is not None or name == "content"}
            if isinstance(message, dict)
            else message
            for message in messages
        ]
    return fields
