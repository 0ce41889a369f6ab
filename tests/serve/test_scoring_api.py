"""Evaluation harnesses read log-probabilities of prompts, which equal those of `transformers`."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from emsjax import LLM, SamplingParams
from tests.serve.conftest import NAME
from tests.serve.test_api import events, post, refused, texts
from tests.tiny import oracle

CONTEXTS = [[7, 8, 9], [11], [20, 21, 20, 21, 20, 33, 34, 35]]
CONTINUATIONS = [[10, 11], [12, 13, 14, 15], [21]]


def log_probabilities(tokens: list[int]) -> np.ndarray:
    """Returns those of the model after each token, float64[n, V]."""
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        logits = oracle("llama")(torch.tensor([tokens])).logits[0].double()
    return torch.log_softmax(logits, dim=-1).numpy()


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_loglikelihoods_as_lm_eval_asks_for_them(client: TestClient, max_tokens: int):
    """The request and the reading of its answer are those of its `local-completions`."""
    likeliest = [int(log_probabilities(context)[-1].argmax()) for context in CONTEXTS]
    contexts = [*CONTEXTS, *CONTEXTS]
    more = [*CONTINUATIONS, *([token] for token in likeliest)]
    prompts = [context + tokens for context, tokens in zip(contexts, more, strict=True)]
    answer = post(
        client,
        "/v1/completions",
        model=NAME,
        prompt=prompts,
        temperature=0,
        max_tokens=max_tokens,
        logprobs=1,
        seed=1234,
        echo=True,
    )
    choices = sorted(answer["choices"], key=lambda choice: choice["index"])
    assert answer["usage"]["completion_tokens"] == max_tokens * len(prompts)
    seen = set()
    for choice, prompt, context in zip(choices, prompts, contexts, strict=True):
        found, wanted = choice["logprobs"], log_probabilities(prompt)
        last = -1 if max_tokens else None
        values = found["token_logprobs"][len(context) : last]
        rows = range(len(context) - 1, len(prompt) - 1)
        assert values == pytest.approx([wanted[row, prompt[row + 1]] for row in rows], abs=1e-4)
        greedy = [
            value == max(top.values())
            for value, top in zip(values, found["top_logprobs"][len(context) : last], strict=True)
        ]
        seen.update(greedy)
        assert greedy == [wanted[row].argmax() == prompt[row + 1] for row in rows]
        assert found["token_logprobs"][0] is None
        assert found["top_logprobs"][0] is None
        names = [f"w{token}" for token in prompt]
        assert found["tokens"][: len(prompt)] == names
        assert len(found["tokens"]) == len(prompt) + max_tokens
        steps = zip(pairwise(found["text_offset"]), found["tokens"], strict=False)
        assert all(end - start == len(text) for (start, end), text in steps)
    assert seen == {True, False}


def test_only_an_echo_has_no_text_of_its_own(client: TestClient):
    asked = {"prompt": "w7 w8", "max_tokens": 0, "echo": True}
    (choice,) = post(client, "/v1/completions", **asked)["choices"]
    assert choice["text"] == "w7 w8"
    assert choice["finish_reason"] == "length"
    chunks = events(client, "/v1/completions", **asked, stream_options={"include_usage": True})
    assert texts(chunks) == {0: "w7 w8"}
    assert chunks[-2]["choices"][0]["finish_reason"] == "length"
    assert chunks[-1]["usage"]["completion_tokens"] == 0


def test_prompt_logprobs_have_vllms_form(client: TestClient, llm: LLM):
    asked = {"max_tokens": 3, "temperature": 0, "prompt_logprobs": 2}
    (output,) = llm.generate([[7, 8, 9]], SamplingParams(**asked))
    (choice,) = post(client, "/v1/completions", prompt=[7, 8, 9], **asked)["choices"]
    first, *rest = choice["prompt_logprobs"]
    assert first is None
    assert output.prompt_logprobs[0] is None
    for given, table in zip(rest, output.prompt_logprobs[1:], strict=True):
        assert given.keys() == {str(token) for token in table}
        for token, each in table.items():
            assert given[str(token)]["logprob"] == pytest.approx(each.logprob)
            assert given[str(token)]["decoded_token"] == f"w{token}"
    messages: list[Any] = [{"role": "user", "content": "w7 w8"}]
    answer = post(client, "/v1/chat/completions", messages=messages, **asked)
    assert len(answer["prompt_logprobs"]) == answer["usage"]["prompt_tokens"]


@pytest.mark.parametrize("n", [1, 3])
def test_several_outputs_share_the_scores_of_their_prompt(llm: LLM, n: int):
    asked = SamplingParams(max_tokens=2, temperature=1.0, seed=1, n=n, prompt_logprobs=0)
    (output,) = llm.generate([[7, 8, 9, 10]], asked)
    pairs = zip([8, 9, 10], output.prompt_logprobs[1:], strict=True)
    values = [table[token].logprob for token, table in pairs]
    wanted = log_probabilities([7, 8, 9, 10])
    assert values == pytest.approx([wanted[0, 8], wanted[1, 9], wanted[2, 10]], abs=1e-4)
    assert len(output.outputs) == n


@pytest.mark.parametrize("given", [{"echo": True, "logprobs": 1}, {"prompt_logprobs": 0}])
def test_streams_have_no_scores(client: TestClient, given: dict[str, Any]):
    status, error = refused(client, "/v1/completions", prompt="w7", stream=True, **given)
    assert status == 400
    assert "a stream has no log-probabilities of the prompt" in error["message"]
    assert events(client, "/v1/completions", prompt="w7", max_tokens=1, echo=True)


def test_no_tokens_without_an_echo_are_refused(client: TestClient):
    status, error = refused(client, "/v1/completions", prompt="w7", max_tokens=0)
    assert status == 400
    assert "max_tokens=0 is out of range" in error["message"]
