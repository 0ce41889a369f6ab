"""`serve` with a model that two hosts share: the first answers, and both end together."""

import json
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import pytest

from emsjax import LLM, SamplingParams
from tests.generate.commands import ended
from tests.generate.several_hosts import start
from tests.serve.conftest import PATIENCE

SMALL = ("--batch-size=2", "--max-model-len=200", "--no-planner", "--drafter=none", "--no-page")


def connects(address: str) -> bool:
    """Returns whether the server listens already at the address that it has named."""
    try:
        with urllib.request.urlopen(f"{address}/models", timeout=PATIENCE):
            return True
    except urllib.error.URLError:
        return False


def ask(address: str, **body: object) -> str:
    request = urllib.request.Request(
        f"{address}/completions",
        json.dumps({"prompt": "w7 w8", "max_tokens": 20, **body}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return str(json.load(answer)["choices"][0]["text"])


@pytest.mark.slow
def test_two_hosts_answer_like_one(model_dir: str, llm: LLM):
    asked = [{"temperature": 0}, {"temperature": 1, "seed": 3, "logprobs": 1}]
    params = [
        SamplingParams(max_tokens=20),
        SamplingParams(max_tokens=20, temperature=1, seed=3, logprobs=1),
    ]
    expected = [each.outputs[0].text for each in llm.generate(["w7 w8"] * 2, params)]
    processes = start([Path(model_dir)] * 2, ["--port=0", *SMALL], devices=1, command="serve")
    try:
        assert answers(processes[0].stderr, asked) == expected
        processes[0].send_signal(signal.SIGTERM)
        (status, _), (status_of_other, said_there) = ended(processes, timeout=120)
    finally:
        for process in processes:
            process.kill()
    assert (status, status_of_other) == (0, 0), said_there
    assert said_there == "host 1 of 2 works for host 0, which answers requests\n"


def answers(said: IO[str] | None, asked: Sequence[Mapping[str, object]]) -> list[str]:
    """Returns the answers of a server that says where it is."""
    assert said is not None
    line = next(each for each in said if each.startswith("serving"))
    assert " on 2 hosts at http://127.0.0.1:" in line
    address = next(word for word in line.split() if word.startswith("http"))
    while not connects(address):
        threading.Event().wait(0.05)
    return [ask(address, **each) for each in asked]
