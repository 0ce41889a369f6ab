"""`LLM.service`: requests of many threads have the texts of `LLM.generate`."""

import queue
from collections.abc import Iterator
from typing import Any

import jax
import pytest

from emsjax import LLM, SamplingParams
from emsjax.requests.service import Service, ServiceClosedError

PATIENCE = 20.0  # seconds, after which a test that hangs fails
PROMPTS = ["w7 w8 w9", "w11 w12", "w13", "w20 w21 w20 w21 w20"]


@pytest.fixture(scope="module")
def llm(model_dir: str) -> LLM:
    return LLM(model_dir, max_batch_size=2, max_model_len=200, planner=False)


@pytest.fixture(autouse=True)
def _strict_in_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives the thread the settings of the tests, without which jax compiles other programs."""
    run = Service._run

    def strict(service: Service) -> None:
        with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
            run(service)

    monkeypatch.setattr(Service, "_run", strict)


@pytest.fixture
def service(llm: LLM) -> Iterator[Service]:
    service = llm.service()
    yield service
    service.close()


def requests(llm: LLM, params: SamplingParams) -> list[Any]:
    return [llm.request(prompt, params, str(place)) for place, prompt in enumerate(PROMPTS)]


def test_pieces_together_are_the_texts_of_generate(llm: LLM, service: Service):
    params = SamplingParams(max_tokens=30, temperature=1.0, n=2, seed=3, logprobs=2, stop=["w9"])
    wanted = llm.generate(PROMPTS, params)
    arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
    service.submit(requests(llm, params), arrived.put, streaming=True)
    texts: dict[tuple[int, int], str] = {}
    logprobs: dict[tuple[int, int], list[Any]] = {}
    outputs = {}
    while len(outputs) < len(PROMPTS):
        piece = arrived.get(timeout=PATIENCE)
        place = piece.prompt_index, piece.index
        texts[place] = texts.get(place, "") + piece.text
        assert len(piece.logprobs) == len(piece.token_ids)
        logprobs.setdefault(place, []).extend(piece.logprobs)
        if piece.output is not None:
            outputs[piece.prompt_index] = piece.output
    for place, output in enumerate(wanted):
        for each, again in zip(output.outputs, outputs[place].outputs, strict=True):
            assert texts[place, each.index] == each.text == again.text
            assert logprobs[place, each.index] == each.logprobs == again.logprobs


def test_whole_outputs_come_at_once(llm: LLM, service: Service):
    params = SamplingParams(max_tokens=9)
    arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
    service.submit(requests(llm, params), arrived.put)
    pieces = [arrived.get(timeout=PATIENCE) for _ in PROMPTS]
    found = {piece.prompt_index: piece.output.outputs[0].text for piece in pieces}
    wanted = [output.outputs[0].text for output in llm.generate(PROMPTS, params)]
    assert [found[place] for place in range(len(PROMPTS))] == wanted


def test_a_service_that_ends_answers_everyone(llm: LLM):
    service = llm.service()
    arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
    (request, *_) = requests(llm, SamplingParams(max_tokens=150, ignore_eos=True))
    service.submit([request], arrived.put)
    cancelled = service.submit([request], arrived.put)
    service.cancel(cancelled)
    service.close()
    last = arrived.get(timeout=PATIENCE)
    assert isinstance(last, ServiceClosedError) or last.output is not None
    assert arrived.empty()
    with pytest.raises(ServiceClosedError, match="shutting down"):
        service.submit([request], arrived.put)
    assert not service.alive
