"""Structured outputs of a model that writes letters are valid, and drafts do not change them."""

import json
from typing import Any

import jsonschema
import numpy as np
import pytest

from emsjax import LLM, SamplingParams, StructuredOutputsParams, UserError
from emsjax.engine import grammar_table
from tests.tiny import letter_checkpoint

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 2},
    },
    "required": ["name", "age"],
}
OUTPUTS: list[dict[str, Any]] = [
    {"json": SCHEMA},
    {"choice": ["yes", "yes, of course", "no"]},
    {"regex": "[a-c]{2,4}(-[0-9]+)?!"},
]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("torch")
    return str(letter_checkpoint("llama", tmp_path_factory.mktemp("letters") / "model"))


@pytest.fixture(scope="module")
def llm(model_dir: str) -> LLM:
    return LLM(model_dir, max_batch_size=4, max_model_len=200, planner=False)


@pytest.fixture(scope="module")
def plain(model_dir: str) -> LLM:
    return LLM(model_dir, max_batch_size=4, max_model_len=200, drafter="none")


def params(outputs: Any, **given: Any) -> SamplingParams:
    given = {"max_tokens": 100, "temperature": 1.0} | given
    return SamplingParams(structured_outputs=outputs, **given)


def prompts(count: int) -> list[list[int]]:
    rng = np.random.default_rng(6)
    return [rng.integers(3, 101, 8).tolist() for _ in range(count)]


def check_json(count: int, llm: LLM, plain: LLM) -> None:
    """Every other prompt has a grammar of its own, and some have none."""
    many = prompts(count)
    asked = [
        params(None) if n % 8 == 7 else params(OUTPUTS[n % 4] if n % 4 < 3 else OUTPUTS[0], seed=n)
        for n in range(count)
    ]
    outputs = llm.generate(many, asked)
    expected = plain.generate(many, asked)
    finished = 0
    for each, output, other in zip(asked, outputs, expected, strict=True):
        (found,), (wanted,) = output.outputs, other.outputs
        if each.seed is not None:
            assert found.token_ids == wanted.token_ids
        wants = each.structured_outputs
        if wants is None or wants.json is None:
            continue
        if found.finish_reason == "stop":
            jsonschema.validate(json.loads(found.text), SCHEMA)
            finished += 1
    assert finished > count // 4
    with_grammar = [n for n in range(count) if n % 8 != 7]
    steps = [sum(o[n].metrics.target_steps for n in with_grammar) for o in (outputs, expected)]
    assert steps[0] < steps[1]


def test_texts_are_valid_and_drafts_change_none(llm: LLM, plain: LLM):
    check_json(16, llm, plain)


@pytest.mark.slow
def test_200_prompts(llm: LLM, plain: LLM):
    check_json(200, llm, plain)


def test_several_outputs_of_a_prompt_choose_for_themselves(llm: LLM):
    outputs = StructuredOutputsParams(choice=["yes", "no", "maybe"])
    asked = params(outputs, n=12, seed=1, temperature=8.0)
    (output,) = llm.generate("abc", asked)
    texts = {each.text for each in output.outputs}
    assert texts <= {"yes", "no", "maybe"}
    assert len(texts) > 1
    assert all(each.finish_reason == "stop" for each in output.outputs)


def test_streamed_pieces_are_the_same_text(llm: LLM):
    asked = params(OUTPUTS[0], seed=3, logprobs=1)
    (output,) = llm.generate("abc", asked)
    pieces = list(llm.stream("abc", asked))
    assert "".join(piece.text for piece in pieces) == output.outputs[0].text


@pytest.mark.parametrize(
    "more",
    [
        {"min_tokens": 50},
        {"temperature": 0},
        {"repetition_penalty": 1.5, "logit_bias": {5: 3.0}},
        {"top_k": 1, "min_p": 0.9},
        {"stop_token_ids": [99]},
    ],
)
def test_other_parameters_leave_texts_valid(llm: LLM, more: dict[str, Any]):
    asked = params(OUTPUTS[1], **{"seed": 4, **more})
    for output in llm.generate(prompts(4), asked):
        assert output.outputs[0].text in OUTPUTS[1]["choice"]
        assert output.outputs[0].finish_reason == "stop"


def test_a_stop_token_with_a_text_ends_only_what_may_end(llm: LLM):
    """The letter may also be written, but then nothing would come after it."""
    letter = llm.tokenize("a")[-1]
    asked = [params({"regex": "[ab]{3}a?"}, seed=n, stop_token_ids=[letter]) for n in range(6)]
    outputs = [output.outputs[0] for output in llm.generate(prompts(6), asked)]
    assert {output.text for output in outputs} == {"bbb"}
    assert {output.finish_reason for output in outputs} == {"stop"}


def test_a_forced_end_does_not_end_what_its_grammar_does_not(llm: LLM):
    asked = params({"regex": "a{9}"}, max_tokens=4, forced_eos_token_id=2)
    (output,) = llm.generate("abc", asked)[0].outputs
    assert (output.text, output.finish_reason) == ("aaaa", "length")


def test_bans_that_contradict_a_grammar_are_an_error_of_that_request(llm: LLM):
    banned = params({"choice": ["no"]}, banned_token_ids=[llm.tokenize("n")[-1]])
    fine = params({"choice": ["no"]})
    bad, good = llm.generate(["abc", "abc"], [banned, fine])
    assert bad.outputs[0].finish_reason == "error"
    assert "ban less" in bad.outputs[0].error
    assert good.outputs[0].text == "no"


def test_more_grammars_than_the_table_holds_wait(model_dir: str, monkeypatch: pytest.MonkeyPatch):
    """There is room for two small ones, so that others wait and take their rows."""
    monkeypatch.setattr(grammar_table, "MAX_GRAMMAR_STATES", 128)
    llm = LLM(model_dir, max_batch_size=4, max_model_len=200, planner=False)
    words = [f"{letter}{letter}{letter}" for letter in "abcdefghij"]
    asked = [params({"choice": [word]}) for word in words * 2]
    outputs = llm.generate(prompts(len(asked)), asked)
    assert [output.outputs[0].text for output in outputs] == words * 2
    with pytest.raises(UserError, match="more than the 128 states"):
        llm.generate("abc", params({"regex": "[ab]{200}"}))


def test_what_a_model_lacks_is_named(llm: LLM):
    with pytest.raises(UserError, match=r"no text that .* can write fits"):
        llm.generate("abc", params({"choice": ["é"]}))
    (output,) = llm.generate("abc", params({"choice": ["é", "e"]}))
    assert output.outputs[0].text == "e"


def test_two_runs_at_a_time_have_their_own_tables(llm: LLM):
    """A run in the middle of another one brings a grammar that the other one has still to use."""
    first, second, both = ({"choice": [text]} for text in ("abcde" * 8, "no" * 8, "zz"))
    pieces = llm.stream(prompts(9), [params(first)] * 8 + [params(both)])
    texts = [""] * 9
    start = next(pieces)
    inside = llm.generate(prompts(2), [params(second), params(both)])
    assert [output.outputs[0].text for output in inside] == ["no" * 8, "zz"]
    for piece in [start, *pieces]:
        texts[piece.prompt_index] += piece.text or ""
    assert texts == ["abcde" * 8] * 8 + ["zz"]
