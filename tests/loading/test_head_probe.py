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


def head() -> Any:
    return load_drafter(head_directory("speculators"), target(), 3, dtype="auto", narrowest=4)


def test_guesses_are_those_of_an_oracle():
    text = plain_text(tuple(HEADER))[60:90]
    own, other = (1, 2, 0), (2, 1, 0)
    guesses, chosen = guess_all(head(), target(), text, [own, other])
    expected = [expected_drafts("speculators", text[: n + 2], 1)[0] for n in range(len(text) - 1)]
    assert guesses[0][:-1].tolist() == expected
    assert guesses[1][:-1].tolist() != expected
    assert chosen[-1] == plain_text(tuple(text))[len(text)]
    right = [guess == choice for guess, choice in zip(expected, chosen[1:], strict=True)]
    shares = agreement(head(), target(), text, [own])
    assert shares == pytest.approx([sum(right) / len(right)])


@pytest.mark.parametrize(
    ("shares", "layers", "said"),
    [
        ([0.6, 0.65], (0, 1, 1), ""),
        ([0.4, 0.6], (1, 2, 2), "60% of the places of a short text if it reads the inputs"),
        ([0.1, 0.05], (0, 1, 1), "may have been trained for another model"),
    ],
)
def test_layers_are_settled(
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
    made = dataclasses.replace(head(), hidden_layers=(0, 1, 1))
    found = settle(made, dataclasses.replace(target(), tokenizer=tokenizer))
    assert asked == [(0, 1, 1), (1, 2, 2)], "there is no layer before the first"
    assert found.hidden_layers == layers
    assert said in capsys.readouterr().err


def test_without_a_tokenizer_nothing_is_tried():
    made = head()
    assert settle(made, dataclasses.replace(target(), tokenizer=None)) is made
