"""The tokens of bad words are those of vLLM: the word as it begins a text, and after a space."""

from typing import Any

import pytest

from emsjax.errors import UserError
from emsjax.requests.bad_words import with_bad_words, without_end, words_of
from emsjax.requests.sampling_params import SamplingParams


class Tokenizer:
    """Tokens of a few texts."""

    unk_token, unk_token_id = "?", 0

    def __init__(self, **texts: list[int]):
        self.texts = {name.replace("_", " "): ids for name, ids in texts.items()}

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": self.texts[text]}


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        # Byte-level: the space is part of the first token.
        ({"cat": [5], "_cat": [6]}, [(5,), (6,)]),
        ({"cats": [5, 7], "_cats": [6, 7]}, [(5, 7), (6, 7)]),
        # SentencePiece adds a space itself, and a tokenizer of words drops it.
        ({"cat": [6], "_cat": [6]}, [(6,)]),
        ({"cats": [6, 7], "_cats": [6, 7]}, [(6, 7)]),
        # A space of its own, or another division: the word after it is the plain one.
        ({"cat": [5], "_cat": [3, 5]}, [(5,)]),
        ({"cats": [5, 7], "_cats": [8]}, [(5, 7)]),
    ],
)
def test_with_and_without_a_space(texts: dict[str, list[int]], expected: list) -> None:
    tokenizer: Any = Tokenizer(**texts)
    (word, _) = tokenizer.texts
    assert words_of(tokenizer, [word, f"  {word}"]) == expected


def test_words_join_those_given_as_tokens() -> None:
    tokenizer: Any = Tokenizer(cat=[5], _cat=[6], cats=[5, 7], _cats=[6, 7])
    params = SamplingParams(
        bad_words=["cat", "cats"], banned_token_ids=[6, 9], bad_words_ids=[[5, 7], [4]]
    )
    found = with_bad_words(params, tokenizer)
    assert found.banned_token_ids == (6, 9, 5)
    assert found.bad_words_ids == ((5, 7), (4,), (6, 7))
    assert without_end(found, (4, 5)).bad_words_ids == ((5, 7), (6, 7))
    assert without_end(found, (5,)) is found


def test_too_many_words() -> None:
    texts = {f"{space}c{n}": [bool(space) + 1, n + 3] for n in range(17) for space in ("", "_")}
    tokenizer: Any = Tokenizer(**texts)
    words = [f"c{n}" for n in range(17)]
    assert len(with_bad_words(SamplingParams(bad_words=words[:16]), tokenizer).long_bad_words) == 32
    with pytest.raises(UserError, match=r"34 words of several tokens, .* give at most 32"):
        with_bad_words(SamplingParams(bad_words=words), tokenizer)
