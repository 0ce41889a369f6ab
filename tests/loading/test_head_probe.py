"""A head is tried on a short text, and reads the layers with which it is right more often."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from emsjax.loading import head_probe
from emsjax.loading.drafter import load_drafter
from emsjax.loading.head_guesses import first_guesses, guess_all
from emsjax.loading.head_probe import agreement, settle
from emsjax.loading.load import LoadedModel
from tests.drafters import block_heads
from tests.drafters.coached import HEADER, plain_text, target
from tests.drafters.eagle_heads import expected_drafts, head_directory

pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("real_models")


def head(name: str = "speculators") -> Any:
    return load_drafter(head_directory(name), target(), 3, dtype="auto", narrowest=4)


def block_head(name: str) -> Any:
    directory = block_heads.head_directory(name)
    return load_drafter(directory, target(), 3, dtype="auto", narrowest=4)


def with_letters() -> LoadedModel:
    """Returns the target with a tokenizer whose tokens are letters."""
    tokenizer = SimpleNamespace(encode=lambda text, **_: list(range(len(text))))
    return dataclasses.replace(target(), tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("name", "own", "other"), [("speculators", (1, 2, 0), (2, 1, 0)), ("mtp", (3,), ())]
)
def test_guesses_are_those_of_an_oracle(name: str, own: tuple[int, ...], other: tuple[int, ...]):
    text = plain_text(tuple(HEADER))[60:90]
    guesses, chosen = guess_all(head(name), target(), text, [own, other])
    expected = [expected_drafts(name, text[: n + 2], 1)[0] for n in range(len(text) - 1)]
    assert guesses[0][:-1].tolist() == expected
    assert guesses[1][:-1].tolist() != expected
    assert chosen[-1] == plain_text(tuple(text))[len(text)]
    right = [guess == choice for guess, choice in zip(expected, chosen[1:], strict=True)]
    shares = agreement(head(name), target(), text, [own])
    assert shares == pytest.approx([sum(right) / len(right)])


@pytest.mark.parametrize("name", ["dflash", "dflash-sliding", "medusa-vllm"])
def test_first_guesses_are_those_of_an_oracle(name: str):
    text, places = plain_text(tuple(HEADER))[60:90], [0, 1, 7, 20, 28]
    guesses, chosen = first_guesses(block_head(name), target(), text, places)
    chances = [block_heads.expected_chances(name, text[: n + 2])[0] for n in places]
    assert guesses.tolist() == [int(each.argmax()) for each in chances]
    assert chosen.tolist() == [plain_text(tuple(text[: n + 2]))[n + 2] for n in places]


@pytest.mark.parametrize(("right", "said"), [(3, "right at 9% of the places"), (6, "")])
def test_a_head_that_guesses_at_once_is_tried(
    right: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def guess(_head: Any, _target: Any, tokens: Any, places: Any) -> tuple[Any, Any]:
        assert max(places) + 1 < len(tokens)
        guesses = np.arange(len(places))
        return guesses, np.where(guesses < right, guesses, -1)

    monkeypatch.setattr(head_probe, "first_guesses", guess)
    made = block_head("medusa")
    assert settle(made, with_letters()) is made
    found = capsys.readouterr().err
    assert said in found
    assert bool(said) == ("may have been trained for another model" in found)


INNER = ("speculators", (0, 1, 1), (1, 2, 2))  # there is no layer before the first
FINAL = ("mtp", (3,), ())


@pytest.mark.parametrize(
    ("case", "shares", "layers", "said"),
    [
        (INNER, [0.6, 0.65], (0, 1, 1), ""),
        (INNER, [0.4, 0.6], (1, 2, 2), "60% of the places of a short text if it reads the inputs"),
        (INNER, [0.1, 0.05], (0, 1, 1), "may have been trained for another model"),
        (FINAL, [0.4, 0.6], (), "after the final norm, and at 40% with the states before the"),
    ],
)
def test_what_is_read_is_settled(
    case: tuple[str, tuple[int, ...], tuple[int, ...]],
    shares: list[float],
    layers: tuple[int, ...],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    asked = []

    def agree(_head: Any, _target: Any, _tokens: Any, choices: Any) -> list[float]:
        asked.extend(choices)
        return shares

    monkeypatch.setattr(head_probe, "agreement", agree)
    name, own, other = case
    made = dataclasses.replace(head(name), hidden_layers=own)
    found = settle(made, with_letters())
    assert asked == [own, other]
    assert found.hidden_layers == layers
    assert said in capsys.readouterr().err


def test_without_a_tokenizer_nothing_is_tried():
    made = head()
    assert settle(made, dataclasses.replace(target(), tokenizer=None)) is made
