"""A model that fails on some prompts fails for these alone, whatever was asked for."""

from pathlib import Path

import numpy as np
import pytest

from emsjax import LLM, Report, SamplingParams
from emsjax.errors import UserError
from emsjax.requests import jsonl
from emsjax.requests.prompt_line import parse
from emsjax.requests.token_texts import TokenTexts
from tests.tiny import chat_checkpoint

pytest.importorskip("torch")

UNREADABLE = 50
PROMPTS = ([7, 8, 9] * 6, [11], list(range(3, 40)))
OPTIONS = {"max_batch_size": 2, "max_model_len": 128, "exact": True, "trace": True}
KINDS = (
    {},
    {"logprobs": 5},
    {"stop": ["w81 w81 w81"], "ignore_eos": True},
    {"temperature": 1.0, "top_k": 20, "presence_penalty": 1.0, "n": 3, "seed": 1},
    {"logit_bias": {50: 5.0}, "banned_token_ids": [3], "min_tokens": 3, "logprobs": 0},
)


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    """A model that cannot read token 50: its embedding is NaN."""
    from safetensors.numpy import load_file, save_file

    directory = chat_checkpoint("llama", tmp_path_factory.mktemp("broken") / "model")
    file = Path(directory) / "model.safetensors"
    weights = load_file(file)
    weights["model.embed_tokens.weight"][UNREADABLE] = np.nan
    save_file(weights, file, metadata={"format": "pt"})
    return LLM(str(directory), **OPTIONS)


@pytest.fixture(scope="module")
def sound(model_dir: str) -> LLM:
    return LLM(model_dir, **OPTIONS)


def until_unreadable(ids: tuple[int, ...]) -> tuple[int, ...]:
    return ids[: ids.index(UNREADABLE) + 1] if UNREADABLE in ids[:-1] else ids


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(kind) or "greedy")
def test_a_failed_prompt_among_others(broken: LLM, sound: LLM, kind: dict):
    params = SamplingParams(max_tokens=12, **kind)
    bad = [5, UNREADABLE, 6]
    outputs = broken.generate([PROMPTS[0], bad, *PROMPTS[1:], bad], params)
    for output in (outputs[1], outputs[4]):
        assert len(output.outputs) == params.n
        for index, each in enumerate(output.outputs):
            assert (each.finish_reason, each.stop_reason, each.text) == ("error", None, "")
            assert each.token_ids == ()
            which = f" of output {index + 1}" if params.n > 1 else ""
            assert each.error.startswith("the model gave logits that are not numbers ")
            assert f" after 0 tokens{which}; check its weights" in each.error
        assert output.error == output.outputs[0].error
    ours = [outputs[0], *outputs[2:4]]
    for output, expected in zip(ours, sound.generate(list(PROMPTS), params), strict=True):
        for mine, theirs in zip(output.outputs, expected.outputs, strict=True):
            assert mine.token_ids == until_unreadable(theirs.token_ids)
            assert (mine.error is None) == (mine.token_ids == theirs.token_ids)
            if mine.error is None:
                assert mine.text == theirs.text
            if params.logprobs is not None:
                assert len(mine.logprobs) == len(mine.token_ids)
        # The encoder refuses NaN and infinity.
        assert parse(jsonl.encode(jsonl.result(output, "")))["token_ids"]
    assert "ended by an error: the model gave logits" in Report(outputs).html()


def test_streams_end_with_the_error(broken: LLM):
    pieces = list(broken.stream([[5, UNREADABLE], PROMPTS[1]], SamplingParams(max_tokens=6)))
    ends = [piece for piece in pieces if piece.output is not None]
    assert sorted(str(piece.output.error)[:9] for piece in ends) == ["None", "the model"]
    assert {piece.finish_reason for piece in ends} >= {"error"}


@pytest.fixture
def undecodable(sound: LLM, monkeypatch: pytest.MonkeyPatch) -> int:
    """A token of the first prompt's output, and of no other, that the tokenizer cannot decode."""
    first, *others = (
        output.outputs[0].token_ids for output in sound.generate(list(PROMPTS), PLAIN)
    )
    taken = {token for ids in (*PROMPTS, *others) for token in ids}
    token = next(token for token in first[2:-1] if token not in taken)
    decode = sound.tokenizer.decode

    def failing(tokens: list[int], **options: bool) -> str:
        if token in tokens:
            raise IndexError("piece id is out of range")
        return decode(tokens, **options)

    monkeypatch.setattr(sound.tokenizer, "decode", failing)
    monkeypatch.setattr(sound, "_token_text", TokenTexts(sound.tokenizer))
    return token


PLAIN = SamplingParams(max_tokens=12, ignore_eos=True)
UNDECODABLE = (
    "the tokenizer cannot turn tokens into text (IndexError: piece id is out of range); name "
    "another tokenizer."
)


@pytest.mark.parametrize("kind", [{}, {"logprobs": 5}, {"stop": ["w81 w81 w81"]}], ids=list)
def test_a_tokenizer_that_fails_on_a_generated_token(
    sound: LLM, undecodable: int, monkeypatch: pytest.MonkeyPatch, kind: dict
):
    params = SamplingParams(max_tokens=12, ignore_eos=True, **kind)
    outputs = [output.outputs[0] for output in sound.generate(list(PROMPTS), params)]
    monkeypatch.undo()
    expected = [output.outputs[0] for output in sound.generate(list(PROMPTS), params)]
    assert [each.error for each in outputs] == [UNDECODABLE, None, None]
    assert (outputs[0].finish_reason, outputs[0].stop_reason) == ("error", None)
    place = expected[0].token_ids.index(undecodable)
    # With stop strings the text is read while it is generated, and the output ends there.
    end = place + 1 if "stop" in kind else None
    assert outputs[0].token_ids == expected[0].token_ids[:end]
    before = sound.tokenizer.decode(expected[0].token_ids[:place])
    assert outputs[0].text.strip() == before
    assert before
    assert expected[0].text.startswith(outputs[0].text)
    for mine, theirs in zip(outputs[1:], expected[1:], strict=True):
        assert (mine.text, mine.token_ids) == (theirs.text, theirs.token_ids)


def test_streams_end_where_the_tokenizer_fails(sound: LLM, undecodable: int):
    pieces = [piece for piece in sound.stream(list(PROMPTS), PLAIN) if piece.prompt_index == 0]
    *_, last = pieces
    assert (last.finish_reason, last.output.error) == ("error", UNDECODABLE)
    assert "".join(piece.text for piece in pieces) == last.output.outputs[0].text
    assert last.output.outputs[0].token_ids[-1] == undecodable


def test_a_tokenizer_that_fails_on_a_prompt(sound: LLM, undecodable: int):
    """Its text is decoded again, to know where the output's text begins."""
    with pytest.raises(UserError, match="cannot turn tokens into text"):
        sound.request(f"w3 w{undecodable}", PLAIN, "a")
