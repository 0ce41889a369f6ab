"""Load on a server: every answer is the one without a server, and killing it hurts nobody for long.

The figures of the benchmark mean nothing with a tiny model.
"""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import load_clients, serve_load
from benchmarks.load_requests import Ask, Wanted, judge
from tests.tiny import chat_checkpoint

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


def asks(count: int) -> list[Ask]:
    """Returns requests for a model whose tokens are words."""
    found = []
    for number in range(count):
        text = f"w{7 + number} w8"
        sampled = {"seed": number, "max_tokens": 20 + number}
        greedy = {"temperature": 0, "max_tokens": 60}
        chat = {"messages": [{"role": "user", "content": text}]}
        kinds = [
            (COMPLETIONS, {"prompt": text, **greedy}),
            (COMPLETIONS, {"prompt": text, "n": 2, **sampled}),
            (CHAT, {**chat, **greedy}),
            (CHAT, {**chat, **sampled, "guided_regex": "( w[0-9])+"}),
        ]
        found.append(Ask(*kinds[number % len(kinds)]))
    return found


@pytest.mark.slow
def test_answers_under_load_are_those_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("torch")
    model = str(chat_checkpoint("llama", tmp_path / "model"))
    file = tmp_path / "load.json"
    options = ["--model", model, "--max-model-len", "200", "--slots", "2", "--exact"]
    options += ["--seconds", "3", "--requests", "8", "--output", str(file)]
    monkeypatch.setattr(sys, "argv", ["serve_load", *options])
    monkeypatch.setattr(serve_load, "asks", asks)
    monkeypatch.setattr(serve_load, "KILLED_AFTER", 1.0)
    monkeypatch.setattr(load_clients, "PATIENCE", (0.0, 0.02))
    serve_load.main()
    found = json.loads(file.read_text())
    assert found["problems"] == found["killed"]["problems"] == []
    did = found["did"]
    for what in ("stream: equal", "whole: equal", "leave: left", "cancel: cancelled", "bad: 400"):
        assert did[what] > 0, did
    assert not any("tied" in what or "different" in what for what in did)
    assert found["killed"]["connections_lost"] == 8
    assert found["killed"]["seconds_until_all_noticed"] < 5
    assert found["killed"]["answers_after_restart"] > 0
    assert found["killed"]["exit_status"] == 0
    assert "8 clients for" in capsys.readouterr().out


def test_only_what_differs_from_a_tie_on_is_a_tie():
    wanted = Wanted(("one two three",), ties=((4, 7),))
    assert judge(wanted, ["one two three"]) == "equal"
    assert judge(wanted, ["one six"]) == "tied"
    assert judge(wanted, ["six"]) == "different"
    assert judge(wanted, ["one two four"]) == "different"
    assert judge(wanted, ["one two three", "more"]) == "different"
