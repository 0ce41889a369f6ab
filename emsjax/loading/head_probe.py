"""Tries an EAGLE head or an MTP module on a short text, because its files leave two things open.

They do not say which model a head was trained for. And programs differ in what it reads: they
number layers differently, by one, and give MTP modules the state before the target's final norm
(vLLM) or after it (SGLang). Both cost nothing but speed, and so would go unnoticed.
"""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from emsjax.drafters.eagle import Eagle
from emsjax.engine.devices import SAME
from emsjax.engine.drafter import Observation
from emsjax.engine.ladder import CAPACITY_MULTIPLE
from emsjax.engine.packing import pack
from emsjax.loading.load import LoadedModel
from emsjax.shapes import round_up

# Places of the text that are tried.
_LENGTH = 96
_TEXT = (
    "The city lies on both banks of a river that rises in the mountains to the south and reaches "
    "the sea a hundred miles further north. It was founded as a market for wool and grain, and for "
    "three centuries its merchants were among the richest in the country. When the railway came, "
    "the harbour was filled in and warehouses were built where the ships had been. Today most "
    "people work in offices, schools and hospitals, and the old warehouses are used as flats. "
)
# A head that was trained for a model guesses its choices more often than this.
_FEW = 0.3
# By how much more often it must be right if its layers are numbered in another way.
_BETTER = 0.1


def settle(head: Eagle, target: LoadedModel) -> Eagle:
    """Returns a head that reads the states with which it guesses best; warns if it guesses badly.

    Without a tokenizer there is no text to try, and the head is returned as it is.
    """
    if target.tokenizer is None:
        return head
    tokens = target.tokenizer.encode(_TEXT * 2, add_special_tokens=True)[:_LENGTH]
    if len(tokens) < 2:
        return head
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
    if max(shares) < _FEW:
        print(
            f"warning: {head.name} is right at {max(shares):.0%} of the places of a short text; it "
            f"may have been trained for another model than {target.name}",
            file=sys.stderr,
        )
    return head


def agreement(
    head: Eagle, target: LoadedModel, tokens: Sequence[int], choices: Sequence[tuple[int, ...]]
) -> list[float]:
    """Returns how often a head guesses what the target would choose next, for each choice.

    See `guess_all`.
    """
    guesses, chosen = guess_all(head, target, tokens, choices)
    return [float((each[:-1] == chosen[1:]).mean()) for each in guesses]


def guess_all(
    head: Eagle, target: LoadedModel, tokens: Sequence[int], choices: Sequence[tuple[int, ...]]
) -> tuple[list[np.ndarray], np.ndarray]:
    """Returns what a head guesses at each place of a text, and what the target chooses there.

    Args:
      head: the head.
      target: its target.
      tokens: a text of T tokens.
      choices: layers whose inputs the head may read; an empty choice is the final states.

    Returns:
      For each choice int32[T], the token that the head guesses two places after each one; and
      int32[T], the token that the target chooses after each one.
    """
    count, devices = len(tokens), target.devices
    capacity = round_up(count, CAPACITY_MULTIPLE)
    keep = sorted({layer for layers in choices for layer in layers})
    graphdef, params = nnx.split(target.model)
    vocabulary = devices.vocabulary(target.model.vocab_size)

    def run(params: Any, weights: Any, text: jax.Array) -> tuple[list[jax.Array], jax.Array]:
        model = nnx.merge(graphdef, params)
        start, rows = jnp.zeros(1, jnp.int32), jnp.full(1, count, jnp.int32)
        batch = pack(text[None], start, rows, count)
        spec = model.cache_spec(1, capacity)
        empty = jax.tree.map(lambda x: vocabulary.of_part(jnp.zeros(x.shape, x.dtype)), spec)
        done = model.run(batch, empty, max_q_len=count, keep=keep)
        chosen, _ = vocabulary.first_max(model.logits(done.hidden))
        following = jnp.concatenate([text[1:], chosen[-1:]])
        guesses = []
        for layers in choices:
            read = done.hidden
            if layers:
                assert done.inner is not None
                inner = jnp.split(done.inner, len(keep), axis=1)
                read = jnp.concatenate([inner[keep.index(layer)] for layer in layers], axis=1)
            seen = Observation(batch, read, following, count)
            _, states = head.observe(head.init(1, capacity), weights, seen)
            guesses.append(head.likeliest(states, weights))
        return guesses, chosen

    weights = devices.on_all(head.weights)
    places = *devices.specs_of((params, weights)), SAME
    text = devices.to_all(jnp.asarray(tokens, jnp.int32))
    return jax.device_get(devices.program(run, places, SAME)(params, weights, text))


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
