"""What a generation config forbids and forces, under speculation, as `transformers` does it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from emsjax import LLM, SamplingParams, UserError
from tests.tiny import oracle

torch = pytest.importorskip("torch")

PROMPTS = ([7, 8, 9] * 6, [11], [5, 6] * 10, list(range(3, 40)), [7, 7, 7, 7])
COUNT = 30


@pytest.fixture(scope="module")
def llm(model_dir: str) -> LLM:
    return LLM(model_dir, max_batch_size=3, max_model_len=128, exact=True)


def theirs(prompt: list[int], count: int = COUNT, **config: Any) -> list[int]:
    """The greedy output of `transformers`."""
    given = {"do_sample": False, "max_new_tokens": count, "eos_token_id": 2, "pad_token_id": 0}
    generated = oracle("llama").generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        **given | config,
    )
    return generated[0, len(prompt) :].tolist()


def ours(llm: LLM, **params: Any) -> list[list[int]]:
    given = SamplingParams(**{"max_tokens": COUNT} | params)
    return [list(output.outputs[0].token_ids) for output in llm.generate(PROMPTS, given)]


@pytest.fixture(scope="module")
def free(llm: LLM) -> list[list[int]]:
    return ours(llm)


def begun(free: list[list[int]], at: int, length: int) -> list[list[int]]:
    """Words that the free texts contain."""
    return [text[at : at + length] for text in free if len(text) >= at + length]


CASES = {
    "bigrams": lambda free: {"no_repeat_ngram_size": 2},
    "trigrams": lambda free: {"no_repeat_ngram_size": 3},
    "tokens": lambda free: {"no_repeat_ngram_size": 1, "repetition_penalty": 1.2},
    "words": lambda free: {"bad_words_ids": begun(free, 2, 2) + begun(free, 5, 3)},
    "long words": lambda free: {"bad_words_ids": [*begun(free, 3, 8), [2], [free[0][0]]]},
    "words of the prompt": lambda free: {"bad_words_ids": [[8, 9, free[0][0]]]},
    "the first": lambda free: {"begin_suppress_tokens": [text[0] for text in free]},
    "the first after one": lambda free: {"forced_bos_token_id": 40},
    "the first two": lambda free: {"forced_bos_token_id": 40, "begin_suppress_tokens": [60, 71]},
    "the last": lambda free: {"forced_eos_token_id": 2},
    "one of two last": lambda free: {"forced_eos_token_id": [50, 31]},
    "all": lambda free: {
        "no_repeat_ngram_size": 2,
        "bad_words_ids": begun(free, 1, 2),
        "begin_suppress_tokens": [text[0] for text in free],
        "forced_bos_token_id": 40,
        "forced_eos_token_id": 2,
        "repetition_penalty": 1.1,
    },
}


@pytest.mark.parametrize("case", CASES)
def test_greedy_texts_are_those_of_transformers(llm: LLM, free: list, case: str):
    config = CASES[case](free)
    found = ours(llm, **config)
    assert found == [theirs(prompt, **config) for prompt in PROMPTS]
    assert found != free


def test_drafts_are_verified_under_the_bans(llm: LLM):
    params = SamplingParams(max_tokens=COUNT, no_repeat_ngram_size=4, ignore_eos=True)
    outputs = llm.generate(PROMPTS, params)
    drafted, accepted = (
        sum(getattr(output.metrics, name) for output in outputs)
        for name in ("drafted_tokens", "accepted_tokens")
    )
    assert drafted > accepted > 0


@pytest.mark.parametrize("count", [1, 2])
def test_short_outputs(llm: LLM, count: int):
    config = {"forced_eos_token_id": 2, "forced_bos_token_id": 40, "begin_suppress_tokens": [60]}
    found = ours(llm, max_tokens=count, **config)
    assert found == [theirs(prompt, count, **config) for prompt in PROMPTS]
    assert all(text[-1] == 2 for text in found)


def test_neighbours_are_not_affected(llm: LLM, free: list):
    banned = SamplingParams(max_tokens=COUNT, **CASES["all"](free))
    plain = SamplingParams(max_tokens=COUNT)
    both = [params for _ in PROMPTS for params in (plain, banned)]
    outputs = llm.generate([prompt for prompt in PROMPTS for _ in range(2)], both)
    texts = [list(output.outputs[0].token_ids) for output in outputs]
    assert texts[::2] == free
    assert texts[1::2] == ours(llm, **CASES["all"](free))


def test_a_generation_config(model_dir: str, tmp_path: Path, free: list):
    """The file sets what requests leave out; an early end shows that `min_length` holds it back."""
    directory = tmp_path / "configured"
    shutil.copytree(model_dir, directory)
    config = CASES["all"](free) | {"min_length": 24, "eos_token_id": [2, free[0][3], free[1][3]]}
    (directory / "generation_config.json").write_text(json.dumps(config))
    configured = LLM(str(directory), max_batch_size=3, max_model_len=128, exact=True)
    expected = [theirs(prompt, **config) for prompt in PROMPTS]
    assert ours(configured) == expected
    assert [theirs(prompt, **config | {"min_length": 0}) for prompt in PROMPTS] != expected
    off = {"no_repeat_ngram_size": 0, "repetition_penalty": 1.0, "min_tokens": 0}
    lists = [name for name in config if name.startswith(("bad", "begin", "forced"))]
    off |= dict.fromkeys(lists, ())
    found = ours(configured, **off, stop_token_ids=[2], ignore_eos=True)
    assert found == free


def test_an_exhausted_vocabulary_is_an_error(llm: LLM):
    params = SamplingParams(max_tokens=9, allowed_token_ids=range(7, 12), no_repeat_ngram_size=1)
    output = llm.generate([PROMPTS[0]], params)[0].outputs[0]
    assert (output.finish_reason, len(output.token_ids)) == ("error", 2)
    assert "the request's own bans may leave no token" in output.error


def test_ends_of_text_are_bad_words_only_if_ignored(llm: LLM, free: list):
    assert ours(llm, bad_words_ids=[[2]]) == free
    params = {"ignore_eos": True, "logit_bias": {2: 50.0}}
    assert 2 in ours(llm, **params)[0]
    assert 2 not in ours(llm, bad_words_ids=[[2]], **params)[0]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"bad_words_ids": [[3, 101]]}, "bad_words_ids has token id 101"),
        ({"forced_eos_token_id": 101}, "forced_eos_token_id has token id 101"),
        ({"begin_suppress_tokens": [500]}, "begin_suppress_tokens has token id 500"),
        ({"allowed_token_ids": [5], "begin_suppress_tokens": [5]}, "leave no token to choose"),
        ({"allowed_token_ids": [5], "bad_words_ids": [[5]]}, "leave no token to choose"),
        (
            {"banned_token_ids": [5], "forced_eos_token_id": 5},
            "forced_eos_token_id has token id 5, which banned_token_ids has too",
        ),
    ],
)
def test_parameters_that_do_not_fit_the_model(llm: LLM, params: dict, message: str):
    with pytest.raises(UserError, match=message):
        llm.generate([[7]], SamplingParams(**params))
