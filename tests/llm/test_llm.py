"""`LLM`: its inputs, its outputs, and its error messages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emsjax import LLM, SamplingParams, UserError, build_engine
from emsjax.build_drafter import check_drafting
from emsjax.drafters import PromptLookup
from emsjax.drafters.prompt_lookup import MOST_MATCHES
from tests.engine.setup import expected
from tests.tiny import VOCAB_SIZE, checkpoint

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def llm(model_dir: str) -> LLM:
    return LLM(model_dir, max_batch_size=2, max_model_len=200)


@pytest.fixture(scope="module")
def without_tokenizer() -> LLM:
    return LLM(str(checkpoint("llama")), max_batch_size=2, max_model_len=200)


def test_texts_and_ids_come_back_in_order(llm: LLM):
    prompts = ["w7 w8 w9", [7, 8, 9, 10], "w11", [12]]
    outputs = llm.generate(prompts, SamplingParams(max_tokens=9))
    for prompt, output in zip(prompts, outputs, strict=True):
        ids = [int(word[1:]) for word in prompt.split()] if isinstance(prompt, str) else prompt
        assert output.prompt_token_ids == tuple(ids)
        assert output.prompt == (prompt if isinstance(prompt, str) else None)
        (completion,) = output.outputs
        assert list(completion.token_ids) == expected("llama", tuple(ids), 64, 2)[:9]
        shown = completion.token_ids[: -1 if completion.finish_reason == "stop" else None]
        assert completion.text.split() == [f"w{i}" for i in shown if i != 2]


@pytest.mark.parametrize("prompt", ["w7 w8 w9", [7, 8, 9]])
def test_a_single_prompt_needs_no_list(llm: LLM, prompt):
    (output,) = llm.generate(prompt, SamplingParams(max_tokens=3))
    assert output.prompt_token_ids == (7, 8, 9)


def test_each_prompt_may_have_its_own_parameters(llm: LLM):
    params = [SamplingParams(max_tokens=n, ignore_eos=True) for n in (1, 5, 3)]
    outputs = llm.generate([[7], [8], [9]], params)
    assert [len(o.outputs[0].token_ids) for o in outputs] == [1, 5, 3]


def test_chat_applies_the_template(llm: LLM):
    messages = [{"role": "user", "content": "w7 w8"}]
    (output,) = llm.chat(messages, SamplingParams(max_tokens=2))
    assert output.prompt_token_ids == (5, 7, 8, 6)
    assert len(llm.chat([messages, messages], SamplingParams(max_tokens=2))) == 2


def test_a_stop_token_is_the_stop_reason_and_not_in_the_text(llm: LLM):
    (free,) = llm.generate([[7, 8]], SamplingParams(max_tokens=20, ignore_eos=True))
    token = free.outputs[0].token_ids[4]
    params = SamplingParams(max_tokens=20, ignore_eos=True, stop_token_ids=[token])
    (output,) = llm.generate([[7, 8]], params)
    completion = output.outputs[0]
    assert (completion.finish_reason, completion.stop_reason) == ("stop", token)
    assert completion.token_ids[-1] == token
    assert f"w{token}" not in completion.text.split()


def test_the_model_length_bounds_prompt_and_output(llm: LLM):
    params = SamplingParams(max_tokens=500, ignore_eos=True)
    (output,) = llm.generate([[7] * 190], params)
    assert len(output.outputs[0].token_ids) == 10
    assert output.outputs[0].finish_reason == "length"


def test_no_prompts_give_no_outputs(llm: LLM):
    assert llm.generate([]) == []


def test_without_a_tokenizer_ids_work_and_text_is_none(without_tokenizer: LLM):
    (output,) = without_tokenizer.generate([[7, 8, 9]], SamplingParams(max_tokens=3))
    assert output.outputs[0].text is None
    assert len(output.outputs[0].token_ids) == 3


def test_a_drafter_object_is_used_unchanged(model_dir: str, llm: LLM):
    drafter = PromptLookup(draft_length=3, max_ngram=2, min_ngram=2)
    other = LLM(model_dir, drafter=drafter, max_batch_size=1, max_model_len=100)
    params = SamplingParams(max_tokens=30)
    (ours,), (theirs,) = other.generate([[7, 8, 9]], params), llm.generate([[7, 8, 9]], params)
    assert ours.outputs[0].token_ids == theirs.outputs[0].token_ids
    assert len(ours.metrics.drafted_by_position) == 3


def test_a_single_token_may_be_looked_up():
    lookup = check_drafting("ems", None, {"max_ngram": 1}).lookup()
    assert lookup == PromptLookup(7, 1, 1, MOST_MATCHES)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "empty"),
        ([], "empty"),
        ([7, VOCAB_SIZE], f"{VOCAB_SIZE} is outside the vocabulary"),
        ([-1], "-1 is outside the vocabulary"),
        ([7, 1.5], "1.5"),
        ([True], "True"),
        ([7] * 200, "200 tokens"),
        ([{"role": "user"}], "must have a 'role'"),
        ([{"role": "user", "content": [{"type": "text"}]}], "has no 'text'"),
        ([{"role": "user", "content": 5}], "must be text"),
        (None, "a prompt is None; give text"),
        ({"text": "w7"}, "must have a 'role'"),
        ({"prompt": [7]}, r"prompt is \[7\]; it must be text"),
        ({"prompt": []}, r"prompt is \[\]; it must be text"),
        ({"prompt": {"prompt": "w7"}}, "it must be text"),
        ({"prompt_token_ids": "w7"}, "'w7'; it must be a list of token ids"),
        ({"prompt_token_ids": []}, "empty"),
        ({"messages": "w7"}, "'w7'; it must be a list of messages"),
        ({"prompt": "w7", "prompt_token_ids": [7]}, "prompt and prompt_token_ids; give exactly"),
        ({"prompt": None}, "a prompt has no prompt"),
        ({"prompt": "w7", "multi_modal_data": {"image": 1}}, "models take text only"),
        ({"prompt": "w7", "promt": 1}, "the key 'promt'"),
        (b"ab", "a prompt is b'ab'; give text"),
        ("w7 \ud800", "UTF-8"),
    ],
)
def test_bad_prompts(llm: LLM, prompt, message: str):
    with pytest.raises(UserError, match=message):
        llm.generate([prompt])


@pytest.mark.parametrize(
    "prompt",
    [np.array([7, 8, 9]), list(np.array([7, 8, 9])), jnp.array([7, 8, 9]), (7, 8, 9)],
    ids=["numpy", "numbers of numpy", "jax", "tuple"],
)
def test_ids_of_any_kind_are_one_prompt(llm: LLM, prompt):
    (output,) = llm.generate(prompt, SamplingParams(max_tokens=1))
    assert output.prompt_token_ids == (7, 8, 9)


def test_prompts_from_a_generator(llm: LLM):
    outputs = llm.generate(([i] for i in (7, 8, 9)), SamplingParams(max_tokens=1))
    assert [output.prompt_token_ids for output in outputs] == [(7,), (8,), (9,)]


@pytest.mark.parametrize("prompts", [None, 5, {"text": "w7"}])
def test_arguments_that_are_no_prompts(llm: LLM, prompts):
    with pytest.raises(UserError, match=r"prompts is .*; give text, token ids"):
        llm.generate(prompts)


@pytest.mark.parametrize("params", [{"max_tokens": 3}, [None], "greedy"])
def test_parameters_must_be_sampling_params(llm: LLM, params):
    with pytest.raises(UserError, match="must be SamplingParams"):
        llm.generate([[7]], params)


def test_chat_refuses_text(llm: LLM):
    with pytest.raises(UserError, match="messages"):
        llm.chat("w7")


def test_text_without_a_tokenizer(without_tokenizer: LLM):
    with pytest.raises(UserError, match="no tokenizer"):
        without_tokenizer.generate(["w7"])


def test_parameters_must_fit_the_prompts(llm: LLM):
    with pytest.raises(UserError, match="2 sampling_params do not match 1"):
        llm.generate([[7]], [SamplingParams()] * 2)


def test_stop_ids_must_be_in_the_vocabulary(llm: LLM):
    with pytest.raises(UserError, match="999"):
        llm.generate([[7]], SamplingParams(stop_token_ids=[999]))


def test_too_many_stop_ids(llm: LLM):
    with pytest.raises(UserError, match=r"70 stop tokens.*give at most 64"):
        llm.generate([[7]], SamplingParams(stop_token_ids=list(range(70))))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch_size": 0}, "max_batch_size is 0"),
        ({"max_model_len": 1}, "between 2 and 512"),
        ({"max_model_len": 1000}, "between 2 and 512"),
        ({"method": "padded"}, "'padded'"),
        ({"drafter": "oracle"}, "'oracle'"),
        ({"draft_length": 0}, "draft_length is 0"),
        ({"min_ngram": 4, "max_ngram": 3}, "min_ngram 4"),
        ({"max_ngram": 17}, "max_ngram <= 16"),
        ({"draft_length": 65}, "draft_length is 65"),
        ({"draft_length": 2.5}, "draft_length is 2.5"),
        ({"max_batch_size": "8"}, "max_batch_size is '8'"),
        ({"max_model_len": 64.5}, "max_model_len is 64.5"),
        ({"drafter": "none", "draft_length": 3}, "draft_length is for"),
        ({"drafter": PromptLookup(), "max_ngram": 3}, "max_ngram is for"),
        ({"method": "none", "drafter": "prompt-lookup"}, "method 'none'"),
        ({"method": "none", "drafter": PromptLookup()}, "method 'none'"),
        ({"draft_model": "no-such-draft"}, "no-such-draft"),
        ({"drafter": "draft-model"}, "'draft-model' needs a draft model"),
        ({"drafter": "combined"}, "'combined' needs a draft model"),
        ({"drafter": "prompt-lookup", "draft_model": "x"}, "draft_model is for the drafter"),
        ({"drafter": "draft-model", "max_ngram": 2}, "max_ngram is for the drafter"),
        ({"drafter": 5}, "drafter is 5; give one of prompt-lookup"),
        ({"draft_model": ""}, "draft_model is ''; give a name or a path"),
        ({"draft_model": 5}, "draft_model is 5; give a name or a path"),
        ({"model": ""}, "model is ''; give a name or a path"),
        ({"model": 5}, "model is 5; give a name or a path"),
        ({"tokenizer": ["a"]}, r"tokenizer is \['a'\]; give a name or a path"),
        ({"planner": "no"}, "planner is 'no'; it must be True or False"),
        ({"exact": 1}, "exact is 1; it must be True or False"),
        ({"trace": None}, "trace is None; it must be True or False"),
        ({"dtype": "int3"}, "int3"),
        ({"model": "no-such-directory"}, "no-such-directory"),
    ],
)
def test_bad_options(model_dir: str, options: dict, message: str):
    with pytest.raises(UserError, match=message):
        LLM(**({"model": model_dir} | options))


def test_a_cache_that_cannot_fit_names_the_largest_batch(
    model_dir: str, monkeypatch: pytest.MonkeyPatch
):
    one_slot = 3 * 256 * 128 * 4  # layers, tokens, lanes, bytes
    monkeypatch.setattr(build_engine, "free_bytes", lambda: 5 * one_slot)
    with pytest.raises(UserError, match="largest batch size that fits is 5"):
        LLM(model_dir, drafter="none", max_batch_size=6, max_model_len=200)
    monkeypatch.setattr(build_engine, "free_bytes", lambda: one_slot // 2)
    with pytest.raises(UserError, match="one sample of at most 128 tokens"):
        LLM(model_dir, drafter="none", max_batch_size=6, max_model_len=200)


def test_running_out_of_memory_on_the_device(llm: LLM, monkeypatch: pytest.MonkeyPatch):
    def advance(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(llm.engine, "advance", advance)
    with pytest.raises(UserError, match="2 samples of 256 tokens"):
        llm.generate([[7]])
