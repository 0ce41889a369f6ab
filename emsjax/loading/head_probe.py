"""Tries a published head on a short text, because its files leave things open.

They do not say which model a head was trained for. And programs differ in what an EAGLE head or an
MTP module reads: they number layers differently, by one, and give MTP modules the state before the
target's final norm (vLLM) or after it (SGLang). All of this costs nothing but speed, and so would
go unnoticed.
"""

import dataclasses
import sys
from collections.abc import Sequence

import numpy as np

from emsjax.drafters.eagle import Eagle
from emsjax.loading.head_guesses import first_guesses, guess_all
from emsjax.loading.head_load import PublishedHead
from emsjax.loading.load import LoadedModel

# Places of the text that are tried, and those among them at which a head guesses that guesses a
# block of tokens at once.
_LENGTH, _EVERY = 96, 3
_TEXT = (
    "The city lies on both banks of a river that rises in the mountains to the south and reaches "
    "the sea a hundred miles further north. It was founded as a market for wool and grain, and for "
    "three centuries its merchants were among the richest in the country. When the railway came, "
    "the harbour was filled in and warehouses were built where the ships had been. Today most "
    "people work in offices, schools and hospitals, and the old warehouses are used as flats. "
)
# A head that was trained for a model guesses its choices more often than this. Medusa heads do not
# know the token before their guess, and heads that guess at once are tried at fewer places.
_FEW, _FEW_AT_ONCE = 0.3, 0.15
# By how much more often it must be right if its layers are numbered in another way.
_BETTER = 0.1


def settle(head: PublishedHead, target: LoadedModel) -> PublishedHead:
    """Returns a head that reads the states with which it guesses best; warns if it guesses badly.

    Without a tokenizer there is no text to try, and the head is returned as it is.
    """
    if target.tokenizer is None:
        return head
    tokens = target.tokenizer.encode(_TEXT * 2, add_special_tokens=True)[:_LENGTH]
    if len(tokens) < 2:
        return head
    if isinstance(head, Eagle):
        head, share = _with_best_states(head, target, tokens)
        few = _FEW
    else:
        guesses, chosen = first_guesses(head, target, tokens, range(0, len(tokens) - 1, _EVERY))
        share, few = float((guesses == chosen).mean()), _FEW_AT_ONCE
    if share < few:
        print(
            f"warning: {head.name} is right at {share:.0%} of the places of a short text; it may "
            f"have been trained for another model than {target.name}",
            file=sys.stderr,
        )
    return head


def _with_best_states(
    head: Eagle, target: LoadedModel, tokens: Sequence[int]
) -> tuple[Eagle, float]:
    """Returns a head that reads the states with which it guesses best, and how often it is right.

    It reads those that its files ask for, unless others are clearly better.
    """
    num_layers = target.model.num_layers
    choices = [head.hidden_layers, *_others(head.hidden_layers, num_layers)]
    shares = agreement(head, target, tokens, choices)
    best = int(np.argmax(shares))
    if best and shares[best] > shares[0] + _BETTER:
        print(
            f"note: {head.name} is right at {shares[best]:.0%} of the places of a short text if it "
            f"reads {_named(choices[best], num_layers)}, and at {shares[0]:.0%} with "
            f"{_named(choices[0], num_layers)}, as its kind does; the former are used",
            file=sys.stderr,
        )
        head = dataclasses.replace(head, hidden_layers=choices[best])
    return head, max(shares)


def agreement(
    head: Eagle, target: LoadedModel, tokens: Sequence[int], choices: Sequence[tuple[int, ...]]
) -> list[float]:
    """Returns how often a head guesses what the target would choose next, for each choice.

    See `guess_all`.
    """
    guesses, chosen = guess_all(head, target, tokens, choices)
    return [float((each[:-1] == chosen[1:]).mean()) for each in guesses]


def _others(layers: tuple[int, ...], num_layers: int) -> list[tuple[int, ...]]:
    """Returns what else a head may have been meant to read.

    For some layers, those before and after them, as far as there are such.
    """
    if layers == (num_layers,):
        return [()]
    moved = [tuple(layer + by for layer in layers) for by in (-1, 1)]
    return [each for each in moved if each and min(each) >= 0 and max(each) < num_layers]


def _named(layers: Sequence[int], num_layers: int) -> str:
    if not layers or layers[0] == num_layers:
        return f"the states {'before' if layers else 'after'} the final norm"
    return f"the inputs of the layers {', '.join(map(str, layers))}"
