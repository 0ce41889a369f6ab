"""The routes of the server: their answers have the texts of `LLM.generate`."""

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from emsjax import LLM, SamplingParams, __version__
from emsjax.serve.backend import Backend
from tests.serve.conftest import NAME

GREEDY = {"temperature": 0, "max_tokens": 12}
MESSAGES = [{"role": "user", "content": "w7 w8"}]


def post(client: TestClient, path: str, **fields: Any) -> Any:
    answer = client.post(path, json=fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(client: TestClient, path: str, **fields: Any) -> tuple[int, dict[str, Any]]:
    answer = client.post(path, json=fields)
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return answer.status_code, error


def events(client: TestClient, path: str, **fields: Any) -> list[Any]:
    answer = client.post(path, json={**fields, "stream": True})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    *chunks, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(chunk.removeprefix("data: ")) for chunk in chunks]


def texts(chunks: list[Any]) -> dict[int, str]:
    found: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            text = choice["text"] if "text" in choice else choice["delta"].get("content", "")
            found[choice["index"]] = found.get(choice["index"], "") + text
    return found


@pytest.mark.parametrize("prompt", ["w7 w8 w9", ["w7 w8", "w11"], [7, 8, 9], [[7, 8], [9, 10, 11]]])
def test_completions_are_those_of_generate(client: TestClient, llm: LLM, prompt: Any):
    outputs = llm.generate(prompt, SamplingParams(max_tokens=12))
    answer = post(client, "/v1/completions", model=NAME, prompt=prompt, **GREEDY)
    assert answer["object"] == "text_completion"
    assert [choice["text"] for choice in answer["choices"]] == [o.outputs[0].text for o in outputs]
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(outputs)))
    read = sum(len(o.prompt_token_ids) for o in outputs)
    written = sum(len(o.outputs[0].token_ids) for o in outputs)
    assert answer["usage"] == {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
    }
    chunks = events(client, "/v1/completions", prompt=prompt, **GREEDY)
    assert texts(chunks) == {n: o.outputs[0].text for n, o in enumerate(outputs)}


def test_samples_and_vllms_fields_are_those_of_generate(client: TestClient, llm: LLM):
    given = {"n": 2, "seed": 5, "temperature": 1.0, "top_k": 20, "min_p": 0.01}
    given |= {"repetition_penalty": 1.1, "ignore_eos": True, "max_tokens": 10, "stop": ["w9"]}
    given |= {"logprobs": 3}
    (output,) = llm.generate("w7 w8 w9", SamplingParams(**given))
    answer = post(client, "/v1/completions", prompt="w7 w8 w9", **given)
    chunks = events(client, "/v1/completions", prompt="w7 w8 w9", **given)
    assert texts(chunks) == {each.index: each.text for each in output.outputs}
    for each, choice in zip(output.outputs, answer["choices"], strict=True):
        assert choice["text"] == each.text
        assert choice["finish_reason"] == each.finish_reason
        assert choice["stop_reason"] == each.stop_reason
        found = choice["logprobs"]
        pairs = zip(each.token_ids, each.logprobs, strict=True)
        values = [table[token].logprob for token, table in pairs]
        assert found["token_logprobs"] == pytest.approx(values)
        assert all(3 <= len(top) <= 4 for top in found["top_logprobs"])
        streamed = [
            part["choices"][0]["logprobs"]
            for part in chunks
            if part["choices"][0]["index"] == each.index
        ]
        for name, whole in found.items():
            assert [item for part in streamed for item in part[name]] == whole


def test_echo_begins_with_the_prompt(client: TestClient):
    asked = {"prompt": [[7, 8], [9]], **GREEDY}
    without = post(client, "/v1/completions", **asked)["choices"]
    choices = post(client, "/v1/completions", **asked, echo=True)["choices"]
    for prompt, plain, echoed in zip(("w7 w8", "w9"), without, choices, strict=True):
        assert echoed["text"] == prompt + plain["text"]
    chunks = events(client, "/v1/completions", **asked, echo=True)
    assert texts(chunks) == {choice["index"]: choice["text"] for choice in choices}


def test_chat_uses_the_template(client: TestClient, llm: LLM):
    (output,) = llm.chat(MESSAGES, SamplingParams(max_tokens=12, logprobs=2))
    (wanted,) = output.outputs
    asked = {"messages": MESSAGES, "temperature": 0, "max_completion_tokens": 12}
    answer = post(client, "/v1/chat/completions", **asked, logprobs=True, top_logprobs=2)
    (choice,) = answer["choices"]
    assert answer["object"] == "chat.completion"
    assert choice["message"] == {"role": "assistant", "content": wanted.text}
    content = choice["logprobs"]["content"]
    assert [part["token"] for part in content] == [f"w{token}" for token in wanted.token_ids]
    assert all(part["bytes"] == list(part["token"].encode()) for part in content)
    assert all(len(part["top_logprobs"]) == 2 for part in content)
    usage = {"include_usage": True}
    chunks = events(
        client, "/v1/chat/completions", **asked, stream_options=usage, logprobs=True, top_logprobs=2
    )
    *chunks, last = chunks
    assert last["choices"] == []
    assert last["usage"] == answer["usage"]
    assert all(chunk["usage"] is None for chunk in chunks)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-1]["choices"][0]["finish_reason"] == choice["finish_reason"]
    assert texts(chunks) == {0: wanted.text}
    streamed = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert [part for found in streamed if found for part in found["content"]] == content


@pytest.mark.parametrize(
    ("path", "fields", "message"),
    [
        ("completions", {}, "prompt must be a text"),
        ("completions", {"prompt": []}, "prompt must be a text"),
        ("completions", {"prompt": [[7], ["w7"]]}, "must be a list of token ids"),
        ("completions", {"prompt": [MESSAGES]}, "must be a list of token ids"),
        ("completions", {"prompt": [[7], []]}, "prompt is empty"),
        ("completions", {"prompt": [101]}, "outside the vocabulary"),
        ("completions", {"prompt": [7] * 200}, "200 tokens, which leaves no room"),
        ("completions", {"prompt": "w7", "top_kk": 3}, "did you mean top_k"),
        ("completions", {"prompt": "w7", "temperature": -1}, "temperature=-1 is out of range"),
        ("completions", {"prompt": "w7", "logprobs": True}, "logprobs=True must be a whole"),
        ("completions", {"prompt": "w7", "stream": 1}, "stream=1 must be true or false"),
        ("completions", {"prompt": "w7", "n": 2, "temperature": 0}, "would all be the same"),
        ("completions", {"prompt": "w7", "best_of": 3}, "set n"),
        ("completions", {"prompt": "w7", "detokenize": False}, "leaves out the text"),
        ("completions", {"prompt": "w7", "priority": "high"}, "must be a whole number"),
        ("completions", {"prompt": "w7", "stream_options": {}}, "needs stream"),
        ("chat/completions", {"messages": []}, "messages must be a list"),
        ("chat/completions", {"messages": "w7"}, "messages must be a list"),
        ("chat/completions", {"messages": [{"role": "user"}]}, "'role' and a 'content'"),
        ("chat/completions", {"messages": ["w7"]}, "must be an object"),
        ("chat/completions", {"messages": MESSAGES, "top_logprobs": 2}, "needs logprobs"),
        ("chat/completions", {"messages": MESSAGES, "chat_template": "w7"}, "is the model's"),
        (
            "chat/completions",
            {"messages": MESSAGES, "response_format": {"type": "json_object"}},
            "can write fits structured_outputs",
        ),
    ],
)
def test_a_wrong_field_is_named(client: TestClient, path: str, fields: dict, message: str):
    status, error = refused(client, f"/v1/{path}", **fields)
    assert (status, error["type"]) == (400, "invalid_request_error")
    assert message in error["message"]


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff", b'{"prompt": NaN}', b"[" * 5000])
def test_a_body_that_is_no_object_is_refused(client: TestClient, raw: bytes):
    answer = client.post(
        "/v1/completions", content=raw, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400
    assert "the body is" in answer.json()["error"]["message"]


def test_fields_that_change_nothing_are_accepted(client: TestClient):
    fields = {"user": "me", "suffix": None, "best_of": 1, "response_format": {"type": "text"}}
    post(client, "/v1/completions", prompt="w7", **GREEDY, **fields)
    tools = [{"type": "function", "function": {"name": "f"}}]
    status, error = refused(client, "/v1/chat/completions", messages=MESSAGES, tools=tools)
    assert status == 400
    assert "does not read 'tools'" in error["message"]


def test_another_model_is_not_found(client: TestClient):
    status, error = refused(client, "/v1/completions", model="gpt", prompt="w7")
    assert (status, error["code"]) == (404, "model_not_found")
    assert client.get("/v1/models/gpt").status_code == 404
    assert client.get(f"/v1/models/{NAME}").json()["id"] == NAME
    (model,) = client.get("/v1/models").json()["data"]
    assert (model["id"], model["max_model_len"]) == (NAME, 200)


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/completions"), ("GET", "/nowhere")])
def test_another_route_has_an_error_in_the_same_form(client: TestClient, method: str, path: str):
    answer = client.request(method, path)
    assert answer.status_code in (404, 405)
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_tokens_to_text_and_back(client: TestClient):
    found = post(client, "/tokenize", model=NAME, prompt="w7 w8")
    assert found == {"count": 2, "max_model_len": 200, "tokens": [7, 8]}
    assert post(client, "/tokenize", messages=MESSAGES)["tokens"] == [5, 7, 8, 6]
    assert post(client, "/detokenize", tokens=[7, 8]) == {"prompt": "w7 w8"}
    for path, fields, message in [
        ("/tokenize", {"prompt": 7}, "give the text as prompt"),
        ("/tokenize", {"prompt": "w7", "what": 1}, "'what' is not a field of /tokenize"),
        ("/detokenize", {"tokens": "w7"}, "must be a list of token ids"),
        ("/detokenize", {"tokens": [-1]}, "outside the vocabulary"),
    ]:
        status, error = refused(client, path, **fields)
        assert status == 400
        assert message in error["message"]


def test_more_than_may_wait_are_told_to_come_later(client: TestClient):
    answer = client.post("/v1/completions", json={"prompt": ["w7"] * 21, **GREEDY})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    assert answer.json()["error"]["type"] == "rate_limit_error"


def test_the_state_of_the_server(client: TestClient):
    assert client.get("/health").status_code == 200
    assert client.get("/version").json() == {"version": __version__}


def figures(client: TestClient) -> dict[str, float]:
    lines = client.get("/metrics").text.splitlines()
    found = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
    return {name: float(value) for name, value in found}


def test_metrics_have_vllms_names(client: TestClient, backend: Backend):
    before = figures(client)
    prompt = "w7 w8 w9 w7 w8 w9 w7 w8"
    answer = post(client, "/v1/completions", prompt=prompt, **GREEDY, ignore_eos=True)
    (output,) = backend.llm.generate(prompt, SamplingParams(max_tokens=12, ignore_eos=True))
    events(client, "/v1/completions", prompt=prompt, **GREEDY, ignore_eos=True)
    after = figures(client)
    labels = f'engine="0",model_name="{NAME}"'

    def gained(name: str, more: str = "") -> float:
        key = f"vllm:{name}{{{labels}{more}}}"
        return after[key] - before.get(key, 0)

    assert answer["choices"][0]["finish_reason"] == "length"
    assert gained("prompt_tokens_total") == 16
    assert gained("generation_tokens_total") == 24
    reason = 'vllm:request_success_total{engine="0",finished_reason="length",'
    reason += f'model_name="{NAME}"}}'
    assert after[reason] - before.get(reason, 0) == 2
    assert gained("spec_decode_num_draft_tokens_total") == 2 * output.metrics.drafted_tokens
    assert gained("spec_decode_num_accepted_tokens_total") == 2 * output.metrics.accepted_tokens
    assert gained("spec_decode_num_drafts_total") == 2 * output.metrics.drafted_by_position[0]
    by_position = gained("spec_decode_num_accepted_tokens_per_pos_total", ',position="0"')
    assert by_position == 2 * output.metrics.accepted_by_position[0]
    assert gained("time_to_first_token_seconds_count") == 1
    assert gained("e2e_request_latency_seconds_count") == 2
    assert gained("num_requests_running") == gained("num_requests_waiting") == 0


def test_a_request_on_which_the_server_fails_ends_alone(
    client: TestClient, backend: Backend, monkeypatch: pytest.MonkeyPatch
):
    admit = backend.llm.engine.admit

    def fails_on_66(state: Any, slot: int, job: Any, *shared: Any) -> Any:
        if job.prompt == (66,):
            raise ZeroDivisionError("in the engine")
        return admit(state, slot, job, *shared)

    monkeypatch.setattr(backend.llm.engine, "admit", fails_on_66)
    status, error = refused(client, "/v1/completions", prompt=[66], **GREEDY)
    assert (status, error["type"]) == (500, "server_error")
    assert "ZeroDivisionError: in the engine" in error["message"]
    (chunk,) = events(client, "/v1/completions", prompt=[66], **GREEDY)
    assert chunk["error"]["type"] == "server_error"
    assert post(client, "/v1/completions", prompt=[67], **GREEDY)["choices"]
    assert client.get("/health").status_code == 200
