"""A server of a tiny model whose tokenizer makes each word one token."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import pytest
import uvicorn
from starlette.testclient import TestClient
from starlette.types import ASGIApp

from emsjax import LLM
from emsjax.requests.outputs import RequestOutput
from emsjax.requests.service import Service
from emsjax.serve.app import make_app
from emsjax.serve.backend import Backend
from emsjax.serve.metrics import Metrics
from emsjax.serve.options import Settings
from tests.tiny import chat_checkpoint

NAME = "tiny"
PATIENCE = 60.0  # seconds, after which a test that hangs fails


@pytest.fixture(scope="package")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("torch")
    return str(chat_checkpoint("llama", tmp_path_factory.mktemp("served") / "model"))


@pytest.fixture(scope="package")
def llm(model_dir: str) -> LLM:
    return LLM(model_dir, max_batch_size=2, max_model_len=200, planner=False, trace=True)


@pytest.fixture(scope="package", autouse=True)
def _strict_services() -> Iterator[None]:
    run = Service._run

    def strict(service: Service) -> None:
        # The settings of the tests' own thread, without which jax compiles other programs.
        with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
            run(service)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Service, "_run", strict)
        yield


@pytest.fixture(scope="package")
def backend(llm: LLM) -> Iterator[Backend]:
    backend = Backend(llm, Settings(name=NAME, most_waiting=20, max_body=10_000))
    yield backend
    backend.close()


@contextmanager
def serving(app: ASGIApp) -> Iterator[int]:
    """Serves at the yielded port of a real socket, and shuts down gracefully."""
    server = uvicorn.Server(uvicorn.Config(app, lifespan="on", log_level="error"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(PATIENCE)
    assert not thread.is_alive()


@pytest.fixture(scope="package")
def client(backend: Backend) -> TestClient:
    # Not as a context manager, which would shut the server down at the end of each file.
    return TestClient(make_app(backend), raise_server_exceptions=False)


@pytest.fixture
def finished(monkeypatch: pytest.MonkeyPatch) -> list[RequestOutput]:
    """The results behind the answers of servers, in order."""
    found: list[RequestOutput] = []
    count = Metrics.finished

    def finish(metrics: Metrics, output: RequestOutput, seconds: float) -> None:
        found.append(output)
        count(metrics, output, seconds)

    monkeypatch.setattr(Metrics, "finished", finish)
    return found
