"""Prompts that the target makes up, and a training on these alone."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from emsjax import UserError
from emsjax.loading.load import LoadedModel, load_model
from emsjax.train.corpus import read_prompts
from emsjax.train.fit import Fitting
from emsjax.train.own_prompts import start_of_message, write_own_prompts
from emsjax.train.record import Writing
from emsjax.train.run import train
from emsjax.train.settings import Training
from tests.tiny import chat_checkpoint, checkpoint

COUNT = 24
WRITING = Writing(outputs=1, max_tokens=16, batch_size=8)


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_checkpoint("llama", tmp_path_factory.mktemp("chat") / "model")


@pytest.fixture(scope="module")
def target(chat_model: Path) -> LoadedModel:
    return load_model(str(chat_model))


def write(target: LoadedModel, file: Path, on_text: Callable[[int, int], None]) -> list[str]:
    write_own_prompts(target, start_of_message(target), file, COUNT, WRITING, on_text)
    return [json.loads(line)["messages"][0]["content"] for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def messages(target: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write(
        target, tmp_path_factory.mktemp("whole") / "own.jsonl", lambda _done, _wanted: None
    )


def test_messages_start_after_the_template_prefix_and_end(
    target: LoadedModel, messages: list[str], tmp_path: Path
):
    assert start_of_message(target) == [5]
    assert len(messages) > COUNT // 3, "most messages end within their limit"
    assert len(set(messages)) == len(messages)
    assert not any("w2" in message.split() for message in messages), (
        "the end-of-text token is not part of a message"
    )
    file = tmp_path / "prompts.jsonl"
    chats = [{"messages": [{"role": "user", "content": message}]} for message in messages]
    file.write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    ids = [[5, *(int(word[1:]) for word in message.split()), 6] for message in messages]
    assert read_prompts([file], target, 512) == ids


def test_an_interrupted_run_writes_the_same_messages(
    target: LoadedModel, messages: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("emsjax.train.record.TEXTS_PER_FILE", 3)
    file = tmp_path / "own.jsonl"
    reported: list[int] = []

    def kill(done: int, _wanted: int) -> None:
        reported.append(done)
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(target, file, kill)
    assert not file.exists()
    reported.clear()
    assert write(target, file, lambda done, _wanted: reported.append(done)) == messages
    assert reported == list(range(4, COUNT + 1)), "three texts were kept"
    assert [each.name for each in tmp_path.iterdir()] == ["own.jsonl"]
    (tmp_path / "own").mkdir()  # as if the run was killed just before it removed this directory
    assert write(target, file, kill) == messages
    assert [each.name for each in tmp_path.iterdir()] == ["own.jsonl"]


def test_a_template_that_starts_with_the_message_is_refused(target: LoadedModel):
    tokenizer = copy.copy(target.tokenizer)
    tokenizer.chat_template = "{{ messages[0].content }}{{ eos_token }}"
    with pytest.raises(UserError, match="its chat template has nothing before a user's message"):
        start_of_message(replace(target, tokenizer=tokenizer))


def training(model: Path, output: Path) -> Training:
    return Training(
        model=str(model),
        inputs=(),
        output=output,
        own_prompts=COUNT,
        writing=WRITING,
        layers=1,
        width=32,
        vocabulary=80,
        held_out=0.3,
        fitting=Fitting(steps=4, rows=4, width=16, unroll=2, evaluate_every=2),
    )


def test_a_draft_is_trained_on_made_up_prompts_alone(chat_model: Path, tmp_path: Path):
    reported: list[tuple[int, int]] = []
    draft = train(training(chat_model, tmp_path), lambda *count: reported.append(count))
    assert reported[0] == (1, COUNT)
    manifest = json.loads((draft / "draft.json").read_text())
    assert "in answer to prompts from the model itself" in manifest["trained_on"]
    with (tmp_path / "own-prompts.jsonl").open("a") as file:
        file.write(json.dumps({"messages": [{"role": "user", "content": "w7"}]}) + "\n")
    with pytest.raises(UserError, match=r"with other prompts than own-prompts\.jsonl now contains"):
        train(training(chat_model, tmp_path))


def test_a_target_without_chat_template_is_refused(chat_model: Path, tmp_path: Path):
    wrong = replace(training(chat_model, tmp_path / "run"), model=str(checkpoint("llama")))
    with pytest.raises(UserError, match="has no chat template"):
        train(wrong)
    with pytest.raises(UserError, match="give --input or --own-prompts"):
        train(replace(training(chat_model, tmp_path / "run"), own_prompts=0))
    assert not (tmp_path / "run").exists()
