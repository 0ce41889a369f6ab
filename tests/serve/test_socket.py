"""The official client of OpenAI on a real socket, and the command that is told to end."""

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import openai
import pytest

from emsjax import LLM, SamplingParams
from emsjax.serve.__main__ import main
from emsjax.serve.app import make_app
from emsjax.serve.backend import Backend
from emsjax.serve.options import Settings
from tests.serve.conftest import PATIENCE, serving

KEY = "secret"
MESSAGES = [{"role": "user", "content": "w7 w8"}]


@pytest.fixture
def port(llm: LLM, backend: Backend) -> Iterator[int]:
    """Serves with a second thread for the same model, and shuts down gracefully."""
    del backend  # gives the threads of all services the settings of the tests
    app = make_app(Backend(llm, Settings(name="tiny", api_key=KEY)))
    with serving(app) as port:
        yield port


def test_the_official_client(port: int, llm: LLM):
    address = f"http://127.0.0.1:{port}/v1"
    with openai.OpenAI(api_key=KEY, base_url=address, max_retries=0) as client:
        (model,) = client.models.list().data
        (wanted,) = llm.generate("w7 w8", SamplingParams(max_tokens=20))[0].outputs
        completion = client.completions.create(
            model=model.id, prompt="w7 w8", max_tokens=20, temperature=0, logprobs=2
        )
        assert completion.choices[0].text == wanted.text
        assert completion.usage.completion_tokens == len(wanted.token_ids)
        (chat,) = llm.chat(MESSAGES, SamplingParams(max_tokens=20))[0].outputs
        stream = client.chat.completions.create(
            model=model.id,
            messages=MESSAGES,
            max_completion_tokens=20,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"top_k": 5, "min_p": 0.0},
        )
        *chunks, last = stream
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == chat.text
        assert last.usage.completion_tokens == len(chat.token_ids)
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            client.chat.completions.create(model="gpt", messages=MESSAGES)
        with pytest.raises(openai.BadRequestError, match="out of range"):
            client.completions.create(model=model.id, prompt="w7", temperature=-3)
    wrong = openai.OpenAI(api_key="wrong", base_url=address, max_retries=0)
    with wrong, pytest.raises(openai.AuthenticationError):
        wrong.models.list()


def test_many_clients_get_their_own_answers(port: int, llm: LLM):
    prompts = [f"w{number} w{number + 1}" for number in range(5, 25)]
    wanted = [each.outputs[0].text for each in llm.generate(prompts, SamplingParams(max_tokens=15))]
    found: dict[int, str] = {}

    def ask(number: int) -> None:
        answer = client.completions.create(
            model="tiny", prompt=prompts[number], max_tokens=15, temperature=0
        )
        found[number] = answer.choices[0].text

    address = f"http://127.0.0.1:{port}/v1"
    with openai.OpenAI(api_key=KEY, base_url=address, max_retries=0) as client:
        threads = [threading.Thread(target=ask, args=(n,)) for n in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    assert [found[number] for number in range(len(prompts))] == wanted


@pytest.mark.slow
def test_the_command_answers_until_it_is_told_to_end(model_dir: str):
    """An answer that is being written when the command is told to end is finished."""
    command = [sys.executable, "-m", "emsjax.serve", "--model", model_dir, "--port", "0"]
    options = ["--max-model-len", "400", "--no-planner"]
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        line = next(each for each in server.stderr if each.startswith("serving"))
        address = next(word for word in line.split() if word.startswith("http://127.0.0.1:"))
        assert line.rstrip().endswith(f"; chat at {address.removesuffix('/v1')}")
        with openai.OpenAI(api_key="none", base_url=address, max_retries=0) as client:
            stream = client.completions.create(
                model="model",
                prompt="w7",
                max_tokens=300,
                temperature=0,
                stream=True,
                extra_body={"ignore_eos": True},
            )
            first = next(iter(stream))
            server.send_signal(signal.SIGTERM)
            *_, last = stream
        assert first.choices[0].finish_reason is None
        assert last.choices[0].finish_reason == "length"
        assert server.wait(PATIENCE) == 0


def test_a_port_that_is_taken_is_reported_before_the_model_is_loaded(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["--model", "nowhere", "--port", port]) == 2
    assert f"cannot listen at --host 127.0.0.1 --port {port}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--port", "70000"], "--port 70000 is not a port"),
        (["--port", "eighty"], "'eighty' is not a whole number"),
        (["--model", ""], "--model is empty"),
        (["--drafter", "prompt-lookup", "--draft-model", "x"], "does not use --draft-model x"),
        (["--time-limit", "0"], "--time-limit 0 is out of range"),
        (["--max-waiting", "-1"], "--max-waiting -1 is out of range"),
        (["--api-key", ""], "--api-key is empty"),
    ],
)
def test_a_wrong_option_is_named(option: list[str], message: str, capsys):
    assert main(option) == 2
    assert message in capsys.readouterr().err
