"""Bodies with damaged fields: an answer, or one short error, and the next client gets its own."""

import json
import random
from typing import Any

import pytest
from starlette.testclient import TestClient

from emsjax import LLM, SamplingParams
from emsjax.serve.backend import Backend
from tests.fuzzing import INPUTS, ODD, is_one_sentence, text_of
from tests.serve.test_api import MESSAGES, post

PARAMS: dict[str, Any] = {
    **{"model": "tiny", "max_tokens": 2, "n": 1, "seed": 3, "temperature": 0.5, "top_p": 0.9},
    **{"top_k": 5, "min_p": 0.01, "presence_penalty": 0.1, "frequency_penalty": 0.1},
    **{"repetition_penalty": 1.1, "stop": ["w9"], "stop_token_ids": [3], "min_tokens": 1},
    **{"logit_bias": {"7": 1.0}, "ignore_eos": False, "skip_special_tokens": True},
    **{"include_stop_str_in_output": True, "bad_words": ["w11"], "allowed_token_ids": None},
    **{"user": "me", "priority": 1, "emsjax_trace": True, "stream": False, "logprobs": None},
    **{"prompt_logprobs": None, "stream_options": None, "structured_outputs": None},
    **{"guided_regex": None, "guided_json": None, "guided_choice": None, "metadata": {}},
    **{"guided_whitespace_pattern": None, "truncate_prompt_tokens": None, "service_tier": "auto"},
    **{"response_format": {"type": "text"}, "parallel_tool_calls": True},
}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {
        **{"prompt": "w7 w8", "echo": False, "suffix": "", "best_of": 1, **PARAMS},
    },
    "/v1/chat/completions": {
        **{"messages": MESSAGES, "max_completion_tokens": None, "top_logprobs": None, **PARAMS},
        **{"tools": None, "tool_choice": "auto", "add_generation_prompt": True},
        **{"continue_final_message": False, "chat_template_kwargs": None},
    },
    "/tokenize": {"prompt": "w7 w8", "model": "tiny", "messages": None, "tools": None},
    "/detokenize": {"tokens": [7, 8], "model": "tiny"},
}


def check(client: TestClient, path: str, text: str) -> int:
    """Sends a body, checks the form of what comes, and returns the status."""
    answer = client.post(path, content=text.encode(), headers={"content-type": "application/json"})
    about = (path, text)
    assert answer.status_code in (200, 400, 404, 413, 429), f"{about!r:.900}: {answer.text[:500]}"
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        is_one_sentence(error["message"], about)
    elif answer.headers["content-type"].startswith("text/event-stream"):
        *chunks, done, rest = answer.text.split("\n\n")
        assert (done, rest) == ("data: [DONE]", "")
        for chunk in chunks:
            assert "error" not in json.loads(chunk.removeprefix("data: ")), about
    else:
        assert "error" not in answer.json()
    return answer.status_code


@pytest.fixture(autouse=True)
def others_get_their_answers(client: TestClient, backend: Backend, llm: LLM):
    yield
    (wanted,) = llm.generate("w7 w8", SamplingParams(max_tokens=9))[0].outputs
    answer = post(client, "/v1/completions", prompt="w7 w8", max_tokens=9, temperature=0)
    assert answer["choices"][0]["text"] == wanted.text
    assert (backend.service.slots.waiting, backend.service.slots.running) == (0, 0)


@pytest.mark.parametrize("path", BODIES)
def test_bodies_as_they_are(client: TestClient, path: str):
    assert check(client, path, json.dumps(BODIES[path])) == 200


@pytest.mark.parametrize("path", BODIES)
def test_damaged_bodies(client: TestClient, path: str):
    rng = random.Random(path)
    statuses = {check(client, path, text_of(rng, BODIES[path])) for _ in range(INPUTS // 2)}
    assert statuses > {400}


@pytest.mark.parametrize(
    "count", [INPUTS // 47, pytest.param(INPUTS // 14, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("path", BODIES)
def test_each_field_with_odd_values(client: TestClient, path: str, count: int):
    rng = random.Random(f"{path} {count}")
    for name in BODIES[path]:
        for value in rng.sample(ODD, min(max(count, 1), len(ODD))):
            check(client, path, json.dumps({**BODIES[path], name: value}))


def test_more_outputs_than_may_wait_are_refused_before_they_are_made(client: TestClient):
    body = {"prompt": ["w7"] * 1000, "n": 1024, "temperature": 1, "max_tokens": 1}
    assert check(client, "/v1/completions", json.dumps(body)) == 429
