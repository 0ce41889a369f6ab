"""What published heads guess at the places of a text, and what their target chooses there."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from emsjax.drafters.dflash import DFlash
from emsjax.drafters.eagle import Eagle
from emsjax.drafters.medusa import Medusa
from emsjax.engine.devices import SAME
from emsjax.engine.drafter import Observation, observer, passes_of
from emsjax.engine.ladder import CAPACITY_MULTIPLE
from emsjax.engine.model import Pass
from emsjax.engine.packing import PackedBatch, pack
from emsjax.engine.state import DecodeState, empty_state
from emsjax.loading.load import LoadedModel
from emsjax.shapes import round_up


class _Read(NamedTuple):
    """What the target made of a text of T tokens.

    Attributes:
      batch: its rows.
      done: what the target computed.
      chosen: int32[T], the token that it chooses after each one.
      following: int32[T], the token that comes after each one; the last is chosen.
    """

    batch: PackedBatch
    done: Pass
    chosen: jax.Array
    following: jax.Array


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
    count = len(tokens)
    keep = sorted({layer for layers in choices for layer in layers})

    def run(read: _Read, weights: Any) -> tuple[list[jax.Array], jax.Array]:
        guesses = []
        for layers in choices:
            states = read.done.hidden
            if layers:
                assert read.done.inner is not None
                inner = jnp.split(read.done.inner, len(keep), axis=1)
                states = jnp.concatenate([inner[keep.index(layer)] for layer in layers], axis=1)
            seen = Observation(read.batch, states, read.following, count)
            _, found = head.observe(head.init(1, _capacity(count)), weights, seen)
            guesses.append(head.likeliest(found, weights))
        return guesses, read.chosen

    return _on_devices(run, head.weights, target, tokens, keep)


def first_guesses(
    head: DFlash | Medusa, target: LoadedModel, tokens: Sequence[int], places: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first guesses of a head that guesses several places at once.

    Args:
      head: the head.
      target: its target.
      tokens: a text of T tokens.
      places: P places in it, before the last.

    Returns:
      int32[P], the token that the head guesses two places after each of these; and int32[P], the
      token that the target chooses there.
    """
    at = np.asarray(places, np.int32)

    def run(read: _Read, weights: Any) -> tuple[jax.Array, jax.Array]:
        state = _drafting(head, read, weights, at)
        draft, _ = head.propose(state, weights, lambda *_, **__: jnp.int32(1))
        return draft.tokens[:, 0], read.chosen[at + 1]

    return _on_devices(run, head.weights, target, tokens, head.hidden_layers)


def _drafting(head: DFlash | Medusa, read: _Read, weights: Any, places: np.ndarray) -> DecodeState:
    """Returns a state with a slot for each place, in which the token after it is the newest."""
    count, slots = read.chosen.shape[0], len(places)
    # A DFlash head writes its rows twice, behind the text.
    capacity = _capacity(count + 2 * passes_of(head, 1).rows)
    cache: Any = ()
    if (observing := observer(head)) is not None:
        assert read.done.inner is not None
        seen = Observation(read.batch, read.done.inner, read.following, count)
        cache, _ = observing.observe(head.init(1, capacity), weights, seen)
        cache = jax.tree.map(lambda x: jnp.repeat(x, slots, axis=1), cache)
    state = empty_state(jnp.zeros((0, slots, capacity)), head.draft_length, cache)
    text = jnp.pad(read.batch.tokens, (0, capacity - count))
    ones = jnp.ones(slots, jnp.int32)
    return state.replace(
        tokens=jnp.tile(text[None], (slots, 1)),
        lens=places + 2 * ones,
        kv_lens=places + ones,
        max_lens=capacity * ones,
        live=ones > 0,
        stats=dataclasses.replace(state.stats, target_steps=ones),
        hidden=read.done.hidden[places] if head.hidden_size else None,
    )


def _on_devices(
    run: Callable[[_Read, Any], Any],
    weights: Any,
    target: LoadedModel,
    tokens: Sequence[int],
    keep: Sequence[int],
) -> Any:
    """Returns what `run` makes of a text that the target has read, and of a head's weights."""
    count, devices = len(tokens), target.devices
    graphdef, params = nnx.split(target.model)
    vocabulary = devices.vocabulary(target.model.vocab_size)

    def read_and_run(params: Any, weights: Any, text: jax.Array) -> Any:
        model = nnx.merge(graphdef, params)
        start, rows = jnp.zeros(1, jnp.int32), jnp.full(1, count, jnp.int32)
        batch = pack(text[None], start, rows, count)
        spec = model.cache_spec(1, _capacity(count))
        empty = jax.tree.map(lambda x: vocabulary.of_part(jnp.zeros(x.shape, x.dtype)), spec)
        done = model.run(batch, empty, max_q_len=count, keep=keep)
        chosen, _ = vocabulary.first_max(model.logits(done.hidden))
        following = jnp.concatenate([text[1:], chosen[-1:]])
        return run(_Read(batch, done, chosen, following), weights)

    weights = devices.on_all(weights)
    places = *devices.specs_of((params, weights)), SAME
    text = devices.to_all(jnp.asarray(tokens, jnp.int32))
    return jax.device_get(devices.program(read_and_run, places, SAME)(params, weights, text))


def _capacity(count: int) -> int:
    return round_up(count, CAPACITY_MULTIPLE)
