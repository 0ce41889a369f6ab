"""`LLM` with the habits of a user of vLLM: names, forms of prompts, chat options, outputs."""

import io
import math
import re
import sys

import pytest

import emsjax
from emsjax import LLM, SamplingParams, UserError
from emsjax.requests.outputs import CompletionOutput
from tests.tiny import checkpoint

pytest.importorskip("torch")

MESSAGES = [{"role": "user", "content": "w7 w8"}]
SHORT = SamplingParams(max_tokens=2)


@pytest.fixture(scope="module")
def llm(model_dir: str) -> LLM:
    return LLM(
        model_dir,
        max_num_seqs=2,
        max_model_len=200,
        tensor_parallel_size=1,
        quantization=None,
        speculative_config={"method": "ngram", "num_speculative_tokens": 7},
    )


@pytest.fixture(scope="module")
def without_tokenizer() -> LLM:
    return LLM(str(checkpoint("llama")), max_batch_size=2, max_model_len=200)


def only(llm: LLM, **params) -> CompletionOutput:
    (output,) = llm.generate([[7, 8]], SamplingParams(**{"max_tokens": 20} | params))
    return output.outputs[0]


def test_options_of_vllm_are_those_of_emsjax(llm: LLM):
    assert (llm.engine.num_slots, llm.engine.drafter.draft_length) == (2, 7)


def test_repr_and_dir_say_what_there_is(llm: LLM, without_tokenizer: LLM):
    shown = r"LLM\('.+', max_batch_size=2, max_model_len=200, drafter='prompt-lookup', "
    assert re.fullmatch(shown + r"dtype='float32', platform='\w+'\)", repr(llm))
    assert dir(emsjax) == sorted(emsjax.__all__)
    assert "get_tokenizer" in dir(llm)
    assert llm.get_tokenizer() is llm.tokenizer
    with pytest.raises(UserError, match=r"no tokenizer; name one with LLM\(tokenizer"):
        without_tokenizer.get_tokenizer()


def test_attributes_of_vllm_are_refused_with_the_counterpart(llm: LLM):
    for name in ("beam_search", "llm_engine", "no_such_name"):
        assert not hasattr(llm, name)
    with pytest.raises(AttributeError, match=r"LLM\.llm_engine is .*; use llm\.engine"):
        _ = llm.llm_engine
    with pytest.raises(AttributeError, match="'LLM' object has no attribute 'generat'"):
        _ = llm.generat


@pytest.mark.parametrize(
    ("prompts", "ids"),
    [
        ({"prompt": "w7 w8"}, [(7, 8)]),
        ({"prompt_token_ids": [7, 8], "multi_modal_data": None}, [(7, 8)]),
        ({"messages": MESSAGES}, [(5, 7, 8, 6)]),
        ([{"prompt": "w7"}, {"prompt_token_ids": (8,)}, "w9", [10]], [(7,), (8,), (9,), (10,)]),
    ],
)
def test_prompts_in_dictionaries(llm: LLM, prompts, ids):
    outputs = llm.generate(prompts, SHORT)
    assert [output.prompt_token_ids for output in outputs] == ids


def test_content_in_parts(llm: LLM):
    parts = [{"type": "text", "text": "w7"}, {"type": "text", "text": "w8"}]
    (output,) = llm.chat([{"role": "user", "content": parts}], SHORT)
    assert output.prompt == "w5 w7\nw8 w6"
    image = [{"type": "image_url", "image_url": {"url": "x" * 1000}}]
    with pytest.raises(UserError, match="'image_url', and models take text only") as caught:
        llm.chat([{"role": "user", "content": image}])
    assert len(str(caught.value)) < 500


TOOLS = [{"type": "function", "function": {"name": "w9"}}]
WITH_TOOLS = (
    "{{ tools[0]['function']['name'] }} {{ messages[0]['content'] }}"
    "{% if thinks %} w11{% endif %}{% if add_generation_prompt %} w12{% endif %}"
)


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        ({}, (5, 7, 8, 6)),
        ({"continue_final_message": True, "add_generation_prompt": False}, (5, 7, 8)),
        ({"chat_template": "w3 {{ messages[0]['content'] }}"}, (3, 7, 8)),
        ({"chat_template": WITH_TOOLS, "tools": TOOLS}, (9, 7, 8, 12)),
        (
            {
                "chat_template": WITH_TOOLS,
                "tools": TOOLS,
                "add_generation_prompt": False,
                "chat_template_kwargs": {"thinks": True},
            },
            (9, 7, 8, 11),
        ),
        ({"tools": [], "chat_template_kwargs": {}, "lora_request": None}, (5, 7, 8, 6)),
    ],
)
def test_options_of_chat(llm: LLM, options: dict, ids: tuple[int, ...]):
    for output in llm.chat([MESSAGES, MESSAGES], SHORT, **options):
        assert output.prompt_token_ids == ids


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tools": TOOLS}, "does not read 'tools'"),
        ({"tools": [print]}, "must be a list of JSON schemas"),
        ({"tools": "w9"}, "must be a list of JSON schemas"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "does not read 'enable_thinking'"),
        ({"chat_template_kwargs": {"tokenize": True}}, "'tokenize', which is not a variable"),
        ({"chat_template_kwargs": [1]}, "must map names to values"),
        ({"continue_final_message": True}, "set add_generation_prompt=False"),
        ({"add_generation_prompt": 1}, "add_generation_prompt=1 must be true or false"),
        ({"chat_template": 5}, "chat_template=5 must be the text"),
        ({"chat_template": "{{"}, "does not take these messages"),
        ({"lora_request": "x"}, "lora_request='x' is vLLM's"),
        ({"use_tqdm": print}, "use_tqdm=.* must be true or false"),
        ({"tool": TOOLS}, "'tool' is not an option of chat; did you mean tools"),
    ],
)
def test_options_of_chat_that_cannot_work(llm: LLM, options: dict, message: str):
    with pytest.raises(UserError, match=message) as caught:
        llm.chat(MESSAGES, SHORT, **options)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("messages", ["w7", ["w7"], [7, 8], [[7]], [None], {"prompt": "w7"}, 5])
def test_chat_takes_messages_only(llm: LLM, messages):
    with pytest.raises(UserError, match="messages with 'role' and 'content'"):
        llm.chat(messages)


def test_no_limit_goes_to_the_end_of_the_context(llm: LLM):
    completion = only(llm, max_tokens=None, ignore_eos=True)
    assert (len(completion.token_ids), completion.finish_reason) == (198, "length")


def test_without_detokenizing_there_is_no_text(llm: LLM):
    completion = only(llm, detokenize=False, logprobs=0)
    assert completion.text is None
    assert completion.token_ids == only(llm).token_ids
    assert completion.logprobs[0][completion.token_ids[0]].decoded_token is None
    pieces = list(llm.stream([[7, 8]], SamplingParams(max_tokens=3, detokenize=False)))
    assert {piece.text for piece in pieces} == {None}


def test_the_text_may_include_what_ended_it(llm: LLM):
    free = only(llm, ignore_eos=True)
    token = free.token_ids[4]
    by_token = {"stop_token_ids": [token], "ignore_eos": True}
    before, stopped = only(llm, **by_token), only(llm, **by_token, include_stop_str_in_output=True)
    assert stopped.token_ids == before.token_ids
    assert stopped.text.split() == [*before.text.split(), f"w{token}"]
    by_text = {"stop": f"w{token}", "ignore_eos": True}
    before, stopped = only(llm, **by_text), only(llm, **by_text, include_stop_str_in_output=True)
    assert stopped.text == before.text + f"w{token}"
    assert stopped.stop_reason == f"w{token}"
    params = SamplingParams(max_tokens=20, **by_text, include_stop_str_in_output=True)
    assert "".join(piece.text for piece in llm.stream([[7, 8]], params)) == stopped.text


@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "seed": 3}])
def test_bad_words_are_never_written(llm: LLM, options: dict):
    free = only(llm, ignore_eos=True, **options)
    bad = free.token_ids[3]
    named = only(llm, ignore_eos=True, bad_words=[f"w{bad}"], **options)
    assert bad not in named.token_ids
    by_id = only(llm, ignore_eos=True, banned_token_ids=[bad], **options)
    assert named.token_ids == by_id.token_ids


def test_bad_words_of_several_tokens(llm: LLM):
    free = only(llm, ignore_eos=True).token_ids
    text = " ".join(f"w{token}" for token in free[2:5])
    named = only(llm, ignore_eos=True, bad_words=[text]).token_ids
    assert named[:4] == free[:4]
    assert named[4] != free[4]
    by_id = only(llm, ignore_eos=True, bad_words_ids=[free[2:5]]).token_ids
    assert named == by_id
    assert all(named[at : at + 3] != free[2:5] for at in range(len(named)))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (" ".join(["w7"] * 9), "has 9 tokens, more than the 8 that can be banned"),
        ("zebra", "'zebra' is not in the vocabulary"),
        ("w7 zebra", "'w7 zebra' is not in the vocabulary"),
        (" ", "' ' has no tokens"),
    ],
)
def test_bad_words_that_cannot_be_banned(llm: LLM, word: str, message: str):
    with pytest.raises(UserError, match=message):
        llm.generate("w7", SamplingParams(bad_words=[word]))


def test_bad_words_need_a_tokenizer(without_tokenizer: LLM):
    with pytest.raises(UserError, match="no tokenizer; bad_words need one"):
        without_tokenizer.generate([[7]], SamplingParams(bad_words=["w7"]))


def test_outputs_are_finished_and_have_a_cumulative_logprob(llm: LLM):
    (output,) = llm.generate([[7, 8]], SamplingParams(max_tokens=5, logprobs=2))
    completion = output.outputs[0]
    assert output.finished
    assert completion.finished()
    tables = zip(completion.token_ids, completion.logprobs, strict=True)
    chosen = [table[token].logprob for token, table in tables]
    assert math.isclose(completion.cumulative_logprob, sum(chosen))
    assert only(llm).cumulative_logprob is None


def test_pieces_know_the_prompt_they_belong_to(llm: LLM):
    prompts = [[7], [8], [9], [10]]
    texts = [""] * len(prompts)
    results = {}
    for piece in llm.stream(prompts, SamplingParams(max_tokens=5)):
        texts[piece.prompt_index] += piece.text
        if piece.output:
            results[piece.prompt_index] = piece.output
    for index, prompt in enumerate(prompts):
        assert results[index].prompt_token_ids == tuple(prompt)
        assert results[index].outputs[0].text == texts[index]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("use_tqdm", [True, False])
@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_progress_shows_on_terminals_only(llm: LLM, monkeypatch, use_tqdm: bool, stream):
    monkeypatch.setattr(sys, "stderr", stream())
    monkeypatch.setenv("TERM", "xterm")
    llm.generate([[7], [8]], SHORT, use_tqdm=use_tqdm)
    llm.chat(MESSAGES, SHORT, use_tqdm)
    shown = sys.stderr.getvalue()
    assert ("prompts 2/2" in shown and "prompts 1/1" in shown) == bool(
        use_tqdm and stream is Terminal
    )
    assert bool(shown) == bool(use_tqdm and stream is Terminal)
