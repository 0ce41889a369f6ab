"""A head is tried on a short text, and reads the layers with which it is right more often."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from emsjax.loading import head_probe
from emsjax.loading.drafter import load_drafter
from emsjax.loading.head_probe import agreement, guess_all, settle
from tests.drafters.coached import HEADER, plain_text, target
from tests.drafters.eagle_heads import expected_drafts, head_directory

pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("real_models")


def head(name: str = "speculators") -> Any:
    return load_drafter(head_directory(name), target(), 3, dtype="auto", narrowest=4)


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
    tokenizer = SimpleNamespace(encode=lambda text, **_: list(range(len(text))))
    name, own, other = case
    made = dataclasses.replace(head(name), hidden_layers=own)
    found = settle(made, dataclasses.replace(target(), tokenizer=tokenizer))
    assert asked == [own, other]
    assert found.hidden_layers == layers
    assert said in capsys.readouterr().err


def test_without_a_tokenizer_nothing_is_tried():
    made = head()
    assert settle(made, dataclasses.replace(target(), tokenizer=None)) is made
