"""Sampling parameters: speculation in a batch gives the same result as plain decoding."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emsjax import LLM, SamplingParams, UserError
from emsjax.requests.outputs import RequestOutput
from tests.tiny import VOCAB_SIZE, checkpoint, oracle

torch = pytest.importorskip("torch")

PROMPTS = ([7, 8, 9] * 6, [11], [5, 6] * 10, list(range(3, 40)), [7, 7, 7, 7])
TOKENS = st.integers(3, VOCAB_SIZE - 1)


@pytest.fixture(scope="module")
def llm(model_dir: str) -> LLM:
    return LLM(model_dir, max_batch_size=3, max_model_len=128, exact=True)


@pytest.fixture(scope="module")
def plain(model_dir: str) -> LLM:
    return LLM(model_dir, drafter="none", max_batch_size=1, max_model_len=128, exact=True)


@st.composite
def params(draw) -> SamplingParams:
    """Any parameters that do not contradict each other."""
    max_tokens = draw(st.integers(2, 30))
    temperature = draw(st.sampled_from((0.0, 0.0, 0.5, 1.0, 1.5)))
    n = draw(st.integers(1, 3)) if temperature else 1
    words = st.sampled_from(("w7", "7 w", "w1", " w3", "9 w8 w", "w30 ", "zz"))
    allowed = draw(st.none() | st.just(range(2, 60)))
    tokens = TOKENS if allowed is None else st.sampled_from(allowed)
    stop_token_ids = draw(st.none() | st.lists(tokens, max_size=3))
    logit_bias = draw(st.none() | st.dictionaries(tokens, st.floats(-5, 5), max_size=3))
    named = {*(stop_token_ids or ()), *(logit_bias or ())}
    ends = st.sampled_from((5, 9, [31, 50]))
    unnamed = TOKENS.filter(lambda token: token not in {*named, 5, 9, 31, 50})
    bad_words = unnamed.map("w{}".format) | st.sampled_from(("w7 w8", "w8 w9 w7"))
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=draw(st.integers(0, max_tokens)),
        temperature=temperature,
        top_k=draw(st.sampled_from((None, -1, 1 if n == 1 else 2, 5))),
        top_p=draw(st.sampled_from((None, 0.5, 0.95))),
        min_p=draw(st.sampled_from((None, 0.1))),
        seed=draw(st.integers(0, 2**63 - 1)),
        stop=draw(st.none() | st.lists(words, max_size=3)),
        stop_token_ids=stop_token_ids,
        ignore_eos=draw(st.booleans()),
        logprobs=draw(st.sampled_from((None, 0, 1, 20))),
        n=n,
        presence_penalty=draw(st.sampled_from((0.0, 1.5, -1.0))),
        frequency_penalty=draw(st.sampled_from((0.0, 0.7, -0.5))),
        repetition_penalty=draw(st.sampled_from((None, 1.3, 0.8))),
        logit_bias=logit_bias,
        allowed_token_ids=allowed,
        banned_token_ids=draw(st.none() | st.lists(unnamed, max_size=3)),
        bad_words=draw(st.none() | st.lists(bad_words, max_size=2)),
        bad_words_ids=draw(
            st.none() | st.lists(st.lists(TOKENS, min_size=2, max_size=4), max_size=8)
        ),
        no_repeat_ngram_size=draw(st.sampled_from((None, 0, 1, 2, 3, 3))),
        begin_suppress_tokens=draw(st.none() | st.lists(TOKENS, max_size=3)),
        forced_bos_token_id=draw(st.none() | ends),
        forced_eos_token_id=draw(st.none() | ends),
        include_stop_str_in_output=draw(st.booleans()),
    )


def comparable(output: RequestOutput) -> list:
    return [vars(completion) for completion in output.outputs]


@settings(max_examples=25)
@given(st.lists(params(), min_size=len(PROMPTS), max_size=len(PROMPTS)))
def test_speculation_in_a_batch_equals_plain_decoding(llm: LLM, plain: LLM, each: list):
    together = llm.generate(PROMPTS, each)
    alone = plain.generate(PROMPTS, each)
    for ours, theirs in zip(together, alone, strict=True):
        assert comparable(ours) == comparable(theirs)


@settings(max_examples=10)
@given(st.lists(params(), min_size=len(PROMPTS), max_size=len(PROMPTS)))
def test_streamed_pieces_put_together_are_the_result(llm: LLM, each: list):
    whole = llm.generate(PROMPTS, each)
    texts: dict[tuple[str, int], str] = {}
    tokens: dict[tuple[str, int], tuple[int, ...]] = {}
    finished = {}
    for piece in llm.stream(PROMPTS, each):
        key = (piece.request_id, piece.index)
        assert key not in finished
        texts[key] = texts.get(key, "") + piece.text
        tokens[key] = tokens.get(key, ()) + piece.token_ids
        if piece.finish_reason:
            finished[key] = piece.output
    outputs = sorted((o for o in finished.values() if o), key=lambda o: int(o.request_id))
    assert [comparable(o) for o in outputs] == [comparable(o) for o in whole]
    for output in outputs:
        for completion in output.outputs:
            key = (output.request_id, completion.index)
            assert texts[key] == completion.text
            assert tokens[key] == completion.token_ids


def test_pieces_come_while_others_are_still_running(llm: LLM):
    params = SamplingParams(max_tokens=60, ignore_eos=True)
    pieces = list(llm.stream([[7, 8, 9], [5, 6]], params))
    assert len({piece.request_id for piece in pieces[:4]}) == 2
    assert len(pieces) > 10
    assert all(piece.text is not None for piece in pieces)


def teacher_forced(prompt: list[int], tokens: tuple[int, ...]) -> np.ndarray:
    """PyTorch's log-probabilities at each generated token, [tokens, V]."""
    with torch.no_grad():
        logits = oracle("llama")(torch.tensor([[*prompt, *tokens]])).logits[0]
    return torch.log_softmax(logits, -1).numpy()[len(prompt) - 1 : -1]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logprobs_are_the_models_own(llm: LLM, temperature: float):
    params = SamplingParams(
        max_tokens=20,
        temperature=temperature,
        seed=0,
        logprobs=5,
        ignore_eos=True,
        logit_bias={9: 4.0},
        frequency_penalty=1.0,
    )
    for prompt, output in zip(PROMPTS, llm.generate(PROMPTS, params), strict=True):
        (completion,) = output.outputs
        expected = teacher_forced(prompt, completion.token_ids)
        assert len(completion.logprobs) == len(completion.token_ids)
        for token, found, row in zip(
            completion.token_ids, completion.logprobs, expected, strict=True
        ):
            assert next(iter(found)) == token
            likeliest = np.argsort(-row)[:5].tolist()
            assert set(found) == {token, *likeliest}
            for other, logprob in found.items():
                # The tolerance for two float32 computations through three layers.
                assert logprob.logprob == pytest.approx(row[other], abs=1e-4)
                assert logprob.rank == (row > row[other]).sum() + 1
                assert logprob.decoded_token == f"w{other}"


def test_repetition_penalty_is_that_of_transformers(llm: LLM):
    for prompt in PROMPTS:
        (output,) = llm.generate(
            [prompt], SamplingParams(max_tokens=30, repetition_penalty=1.7, ignore_eos=True)
        )
        generated = oracle("llama").generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            repetition_penalty=1.7,
            max_new_tokens=30,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert list(output.outputs[0].token_ids) == generated[0, len(prompt) :].tolist()


def test_allowed_and_banned_tokens(llm: LLM):
    params = SamplingParams(
        max_tokens=30, temperature=1.5, allowed_token_ids=[7, 8, 9, 10], banned_token_ids=[8]
    )
    for output in llm.generate(PROMPTS, params):
        assert set(output.outputs[0].token_ids) <= {7, 9, 10}
        assert output.outputs[0].finish_reason == "length"


def test_min_tokens_holds_back_every_end(llm: LLM):
    free = SamplingParams(max_tokens=40, temperature=1.5, stop_token_ids=list(range(3, 40)), seed=4)
    held = replace(free, min_tokens=25, stop="w9", logit_bias=dict.fromkeys(range(3, 40), 50.0))
    for output in llm.generate(PROMPTS, free):
        assert len(output.outputs[0].token_ids) < 25
    for output in llm.generate(PROMPTS, held):
        assert len(output.outputs[0].token_ids) == 26  # 25 tokens, and then the end at once
        assert not set(output.outputs[0].token_ids[:25]) & {2, *range(3, 40)}


def test_a_stop_string_cuts_text_and_tokens(llm: LLM):
    (free,) = llm.generate([[7, 8, 9]], SamplingParams(max_tokens=30, ignore_eos=True))
    tokens = free.outputs[0].token_ids
    texts = [f"w{token}" for token in tokens]
    stop = f"{texts[10][1:]} {texts[11][:2]}"  # begins in one token and ends within the next
    (output,) = llm.generate([[7, 8, 9]], SamplingParams(max_tokens=30, ignore_eos=True, stop=stop))
    (completion,) = output.outputs
    whole = " " + " ".join(texts)
    assert completion.text == whole[: whole.index(stop)]
    assert (completion.finish_reason, completion.stop_reason) == ("stop", stop)
    assert completion.token_ids == tokens[: len(completion.token_ids)]
    assert stop in " " + " ".join(texts[: len(completion.token_ids)])
    assert stop not in " " + " ".join(texts[: len(completion.token_ids) - 1])
    assert output.metrics.emitted_tokens == len(completion.token_ids)


def test_steps_after_a_stop_string_do_not_count(plain: LLM):
    (free,) = plain.generate([[7, 8, 9]], SamplingParams(max_tokens=30, ignore_eos=True))
    for count in range(1, 8):
        stop = f"w{free.outputs[0].token_ids[count - 1]}"
        params = SamplingParams(max_tokens=30, ignore_eos=True, stop=stop)
        (output,) = plain.generate([[7, 8, 9]], params)
        assert output.metrics.target_steps == output.metrics.emitted_tokens <= count


def test_n_samples_differ_and_read_the_prompt_once(llm: LLM, plain: LLM):
    prompt = list(range(3, 90))
    params = SamplingParams(max_tokens=10, temperature=1.0, n=7, seed=5, ignore_eos=True)
    (output,) = llm.generate([prompt], params)
    assert [completion.index for completion in output.outputs] == list(range(7))
    assert len({completion.token_ids for completion in output.outputs}) == 7
    (alone,) = llm.generate([prompt], replace(params, n=1))
    assert alone.outputs[0] == output.outputs[0]
    # 87 tokens in steps of 16; each other sample runs the prompt's last token again.
    assert output.metrics.prefill_steps == alone.metrics.prefill_steps == 5
    assert output.metrics.emitted_tokens == 70
    (one_slot,) = plain.generate([prompt], params)
    assert comparable(one_slot) == comparable(output)


def test_groups_do_not_mix(llm: LLM):
    params = SamplingParams(max_tokens=6, temperature=1.0, n=3, seed=5, ignore_eos=True)
    many = llm.generate(PROMPTS * 2, params)
    for prompt, output in zip(PROMPTS * 2, many, strict=True):
        (alone,) = llm.generate([prompt], params)
        assert comparable(alone) == comparable(output)


def test_requests_without_a_seed_get_one_each(model_dir: str, llm: LLM):
    params = SamplingParams(max_tokens=10, temperature=1.0)
    outputs = llm.generate([[7, 8]] * 4, params) + llm.generate([[7, 8]] * 4, params)
    assert len({output.outputs[0].token_ids for output in outputs}) == 8
    first, again, other = (
        LLM(model_dir, max_batch_size=3, max_model_len=128, exact=True, seed=seed)
        for seed in (0, 0, 1)
    )
    runs = [each.generate([[7, 8]] * 4, params) for each in (first, again, other)]
    texts = [[output.outputs[0].text for output in run] for run in runs]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"logit_bias": {999: 1.0}}, "logit_bias has token id 999"),
        ({"allowed_token_ids": [999]}, "allowed_token_ids has token id 999"),
        ({"banned_token_ids": [VOCAB_SIZE]}, "banned_token_ids has token id 101"),
        ({"allowed_token_ids": [2], "min_tokens": 1}, "leave no token to choose"),
        ({"banned_token_ids": list(range(VOCAB_SIZE))}, "leave no token to choose"),
        ({"min_tokens": 128, "max_tokens": 500}, "min_tokens=128 is more than the 127 tokens"),
        ({"stop": "w2", "ignore_eos": True}, r"'w2' is a special token.* stop_token_ids=\[2\]"),
        ({"stop": "w7 w2 w8", "ignore_eos": True}, r"'w7 w2 w8' has 'w2', a special token"),
        ({"stop": "x" * 81}, "a stop string has 81 characters, but max_tokens=16 tokens have at"),
    ],
)
def test_parameters_that_do_not_fit_the_model(llm: LLM, params: dict, message: str):
    with pytest.raises(UserError, match=message):
        llm.generate([[7]], SamplingParams(**params))


@pytest.mark.parametrize(
    "params", [{"min_tokens": 127, "max_tokens": 500}, {"stop": "w2"}, {"stop": "x" * 80}]
)
def test_parameters_that_just_fit_the_model(llm: LLM, params: dict):
    llm.request([7], SamplingParams(**params), "0")


@pytest.mark.parametrize("params", [{"stop": "w7"}, {"temperature": 0.6, "adapt_temperature": 0.8}])
def test_text_parameters_need_a_tokenizer(params: dict):
    bare = LLM(str(checkpoint("llama")), max_batch_size=1, max_model_len=64)
    with pytest.raises(UserError, match="no tokenizer"):
        bare.generate([[7]], SamplingParams(**params))


@pytest.fixture
def configured(model_dir: str, tmp_path: Path):
    """Makes a model with a generation config."""

    def make(**config: object) -> LLM:
        directory = tmp_path / "configured"
        shutil.copytree(model_dir, directory)
        (directory / "generation_config.json").write_text(json.dumps(config))
        return LLM(str(directory), max_batch_size=3, max_model_len=128, exact=True)

    return make


def test_the_generation_config_sets_parameters_that_are_left_out(configured, llm: LLM):
    config = {"do_sample": True, "temperature": 0.7, "top_k": 5, "repetition_penalty": 1.4}
    theirs = configured(**config, eos_token_id=[2, 9])
    left_out = SamplingParams(max_tokens=20, temperature=1.0, seed=1)
    explicit = replace(left_out, top_k=5, repetition_penalty=1.4, stop_token_ids=[9])
    found, reference = theirs.generate(PROMPTS, left_out), llm.generate(PROMPTS, explicit)
    for left, right in zip(found, reference, strict=True):
        assert left.outputs[0].token_ids == right.outputs[0].token_ids
    closed = replace(left_out, top_k=0, repetition_penalty=1.0)
    found = theirs.generate(PROMPTS, closed)
    reference = llm.generate(PROMPTS, replace(left_out, stop_token_ids=[9]))
    for left, right in zip(found, reference, strict=True):
        assert left.outputs[0].token_ids == right.outputs[0].token_ids


def test_an_invalid_generation_config_is_reported(configured):
    with pytest.raises(UserError, match=r"the generation config of configured: top_p=3"):
        configured(top_p=3)


def test_the_generation_config_bans_tokens_and_sets_the_shortest_text(configured, llm: LLM):
    plain = [o.outputs[0].token_ids for o in llm.generate(PROMPTS, SamplingParams(max_tokens=20))]
    one, other = plain[0][0], plain[-1][0]
    theirs = configured(
        suppress_tokens=[one], bad_words_ids=[[other]], min_new_tokens=9, eos_token_id=2
    )
    explicit = SamplingParams(max_tokens=20, min_tokens=9, banned_token_ids=[one, other])
    found = theirs.generate(PROMPTS, SamplingParams(max_tokens=20))
    for left, right in zip(found, llm.generate(PROMPTS, explicit), strict=True):
        assert left.outputs[0].token_ids == right.outputs[0].token_ids
        assert not {one, other} & set(left.outputs[0].token_ids)
