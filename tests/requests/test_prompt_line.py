"""All commands that read prompts from JSON lines accept the same forms, with the same errors."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from emsjax.bench.prompts import read_datasets
from emsjax.errors import UserError
from emsjax.loading.load import LoadedModel
from emsjax.requests import jsonl
from emsjax.requests.prompt_line import PROMPT_KEYS
from emsjax.requests.prompts import check_prompt
from emsjax.train.corpus import read_prompts
from tests.tiny import VOCAB_SIZE, words

Read = Callable[[Path], Any]


def generate(file: Path) -> Any:
    (line,) = jsonl.read(file.read_bytes().splitlines(), {})
    if isinstance(line, jsonl.BadLine):
        raise UserError(line.error)
    return line.prompt


def bench(file: Path) -> Any:
    ((prompt,),) = read_datasets([file], []).values()
    return prompt


def train(file: Path) -> Any:
    model: Any = SimpleNamespace(vocab_size=VOCAB_SIZE, max_positions=512)
    (ids,) = read_prompts([file], LoadedModel(model, words(), (2,), "tiny", {}, {}), 100)
    return ids


MESSAGES = [{"role": "user", "content": "w7 w8"}]
# The fields of a line, the prompt read from it, and its token ids, which `train` needs.
FORMS: dict[str, tuple[dict[str, Any], Any, list[int]]] = {
    "prompt": ({"prompt": "w7 w8"}, "w7 w8", [7, 8]),
    "prompt_token_ids": ({"prompt_token_ids": [7, 8]}, [7, 8], [7, 8]),
    "messages": ({"messages": MESSAGES}, MESSAGES, [5, 7, 8, 6]),
    "turns": ({"turns": ["w7 w8", "w9"]}, MESSAGES, [5, 7, 8, 6]),
}


@pytest.fixture
def line(tmp_path: Path) -> Callable[[object], Path]:
    """Writes a file of one line."""

    def write(content: object) -> Path:
        file = tmp_path / "prompts.jsonl"
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        return file

    return write


def test_every_form_is_tested():
    assert tuple(FORMS) == PROMPT_KEYS


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("others", [{}, {"prompt": None, "messages": None, "turns": None}])
def test_all_commands_accept_every_form(line, form: str, others: dict):
    fields, prompt, ids = FORMS[form]
    file = line(others | fields)
    assert generate(file) == bench(file) == prompt
    assert train(file) == ids


def test_all_commands_accept_content_in_parts(line):
    parts = [{"type": "text", "text": "w7"}, {"type": "text", "text": "w8"}]
    file = line({"messages": [{"role": "user", "content": parts}]})
    assert generate(file) == bench(file) == [{"role": "user", "content": "w7\nw8"}]
    assert train(file) == [5, 7, 8, 6]


def test_a_call_of_a_tool_needs_no_content(line):
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    expected = [*MESSAGES, call | {"content": ""}]
    assert generate(line({"messages": [*MESSAGES, call]})) == expected
    assert check_prompt([*MESSAGES, call]) == expected
    for lacking in ({"role": "assistant"}, call | {"tool_calls": []}):
        with pytest.raises(UserError, match="content"):
            generate(line({"messages": [lacking]}))
        with pytest.raises(UserError, match="content"):
            check_prompt([lacking])


KEYS = "prompt, prompt_token_ids, messages, turns"


@pytest.mark.parametrize("read", [generate, bench, train])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nonsense", "not JSON (Expecting value at column 1); write one object per line."),
        ("[1]", "not a JSON object but a list; write one object per line."),
        ({}, f"the object has no prompt; give exactly one of {KEYS}"),
        ({"promt": "a"}, f"the object has no prompt; give exactly one of {KEYS}"),
        (
            {"prompt": "a", "messages": MESSAGES},
            f"the object has prompt and messages; give exactly one of {KEYS}",
        ),
        (
            {"prompt_token_ids": [7], "turns": ["a"]},
            f"the object has prompt_token_ids and turns; give exactly one of {KEYS}",
        ),
        ({"prompt": 7}, "prompt must be text, not a number."),
        ({"prompt": [5, 6]}, "prompt must be text, not a list; give token ids as prompt_token_ids"),
        ({"prompt_token_ids": "78"}, "prompt_token_ids must be a list of whole numbers."),
        ({"messages": ["a"]}, "each of messages must be an object with role and content."),
        ({"turns": [7]}, "the first of turns must be text, not a number."),
    ],
)
def test_all_commands_report_a_bad_prompt_the_same_way(line, read: Read, content, message: str):
    with pytest.raises(UserError, match="line 1: " + re.escape(message)):
        read(line(content))


def test_only_training_takes_passages(line):
    file = line({"text": "w7 " * 60})
    assert train(file) == [7] * 48
    for read in (generate, bench):
        with pytest.raises(UserError, match="the object has no prompt"):
            read(file)
    with pytest.raises(UserError, match="the object has prompt and text; give exactly one"):
        train(line({"text": "w7", "prompt": "w7"}))
