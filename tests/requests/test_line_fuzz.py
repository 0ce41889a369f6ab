"""Mutated JSON lines: prompts that every command reads, and results that --resume continues."""

import json
import random
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from emsjax.bench.prompts import read_datasets
from emsjax.errors import UserError
from emsjax.generate.result_file import open_output
from emsjax.loading.load import LoadedModel
from emsjax.requests import jsonl
from emsjax.requests.prompt_line import parse
from emsjax.requests.reader import RequestReader
from emsjax.train.corpus import read_prompts
from tests.fuzzing import INPUTS, is_one_sentence, survives, text_of
from tests.tiny import VOCAB_SIZE, words

MESSAGES = [
    {"role": "system", "content": "w4"},
    {"role": "user", "name": "w9", "content": [{"type": "text", "text": "w7 w8"}]},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "function": {"name": "f"}}]},
]
LINES: list[dict[str, Any]] = [
    {"id": "a", "prompt": "w7 w8", "max_tokens": 3, "temperature": 0.5, "top_k": 3, "top_p": 0.9},
    {"prompt_token_ids": [7, 8], "stop": ["w9"], "stop_token_ids": [3], "seed": 5, "logprobs": 2},
    {"id": 3, "messages": MESSAGES, "category": "qa", "n": 2, "temperature": 1.0, "min_p": 0.1},
    {"turns": ["w7", "w8"], "category": "writing", "logit_bias": {"4": -1.5}, "min_tokens": 2},
    {"prompt": "w7", "bad_words": ["w9", "w7 w8"], "no_repeat_ngram_size": 2, "ignore_eos": True},
    {"text": "w7 w8 w9", "repetition_penalty": 1.2, "presence_penalty": 0.5, "max_tokens": None},
]
RESULTS = [
    jsonl.encode({"id": 1, "prompt": "w7", "text": "w8", "prompt_digest": "0123456789abcdef"}),
    jsonl.encode({"id": "b", "line": 2, "error": "line 2: no."}),
]


@pytest.fixture
def target() -> LoadedModel:
    model: Any = SimpleNamespace(vocab_size=VOCAB_SIZE, max_positions=64)
    return LoadedModel(model, words(), (2,), "tiny", {}, {})


def test_lines(target: LoadedModel, tmp_path: Path) -> None:
    chance, file = random.Random("lines"), tmp_path / "in.jsonl"
    reader = RequestReader(target, VOCAB_SIZE, 64, seed=0)
    done = 0

    def generate(raw: bytes) -> None:
        for line in jsonl.read(raw.splitlines(keepends=True), {"max_tokens": 7}):
            error = ""
            if isinstance(line, jsonl.BadLine):
                error = line.error
            else:
                try:
                    reader.read(line.prompt, line.params, jsonl.key(line.id))
                except UserError as refused:
                    error = str(refused)
            if error:
                is_one_sentence(error, raw)
                parse(jsonl.encode(jsonl.failure(line, error)))
                raise UserError(error)

    for _ in range(INPUTS):
        raw = text_of(chance, chance.choice(LINES)).encode("utf-8", "surrogatepass")
        file.write_bytes(raw)
        done += survives(partial(generate, raw), raw)
        survives(lambda: read_datasets([file], []), raw)
        survives(lambda: read_prompts([file], target, 100), raw)
    assert 0 < done < INPUTS


def test_results_to_continue(tmp_path: Path) -> None:
    chance, file = random.Random("results"), tmp_path / "out.jsonl"
    done = 0

    def resume() -> None:
        before = file.read_bytes()
        try:
            with open_output(str(file), resume=True) as output:
                output.write(RESULTS[0])
        except UserError:
            assert file.read_bytes() == before  # what is not ours stays as it is
            raise
        for line in file.read_bytes().splitlines():
            assert not line.strip() or parse(line)

    for _ in range(INPUTS):
        lines = [text_of(chance, json.loads(chance.choice(RESULTS))).encode() for _ in "12"]
        raw = b"\n".join(chance.choice([[RESULTS[0].strip(), lines[0]], lines]))
        file.write_bytes(raw + chance.choice([b"\n", b""]))
        done += survives(resume, raw)
    assert 0 < done < INPUTS
