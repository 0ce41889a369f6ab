"""What each slot's tokens are chosen by, on the device."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from emsjax.sampling.choice import Choice
from emsjax.sampling.logprobs import Logprobs, empty_table


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SamplingState:
    """One row a slot. Only there while some slot's choice is more than the likeliest token.

    Attributes:
      keys: uint32[B, 2], of the slot's noise.
      temperature: float32[B], 0 is greedy.
      adapt_temperature: float32[B], that of the first token of an indented line.
      top_k: int32[B], 0 keeps all.
      top_p: float32[B].
      min_p: float32[B].
      wants_logprobs: bool[B].
      adjusted: bool[B], whether any of the following changes the slot's logits.
      bias: float32[B, V], added to the logits; -inf for tokens that may not be chosen.
      min_lens: int32[B], no stop token comes before the sample is so long.
      repetition_penalty: float32[B].
      frequency_penalty: float32[B].
      presence_penalty: float32[B].
      in_prompt: bool[B, V], tokens of the prompt.
      counts: int32[B, V], how often each token is in the output.
      token_classes: uint8[V], see `sampling.adapt`.
      logprobs: table of the output's tokens, for slots that want them.
    """

    keys: jax.Array
    temperature: jax.Array
    adapt_temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    wants_logprobs: jax.Array
    adjusted: jax.Array
    bias: jax.Array
    min_lens: jax.Array
    repetition_penalty: jax.Array
    frequency_penalty: jax.Array
    presence_penalty: jax.Array
    in_prompt: jax.Array
    counts: jax.Array
    token_classes: jax.Array
    logprobs: Logprobs

    def replace(self, **changes: Any) -> "SamplingState":
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


# Fields that `admit_choice` copies from the request as they are.
_PLAIN = (
    "temperature",
    "adapt_temperature",
    "top_k",
    "top_p",
    "min_p",
    "wants_logprobs",
    "adjusted",
    "min_lens",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
)


def empty_sampling(num_slots: int, capacity: int, token_classes: jax.Array) -> SamplingState:
    """For B slots of S tokens, each of them greedy.

    Args:
      num_slots: B.
      capacity: S.
      token_classes: uint8[V], see `sampling.adapt`.
    """
    vocab_size = token_classes.shape[0]

    def full(value: float, dtype: Any, *shape: int) -> jax.Array:
        return jnp.full((num_slots, *shape), value, dtype)

    return SamplingState(
        keys=full(0, jnp.uint32, 2),
        temperature=full(0, jnp.float32),
        adapt_temperature=full(0, jnp.float32),
        top_k=full(0, jnp.int32),
        top_p=full(1, jnp.float32),
        min_p=full(0, jnp.float32),
        wants_logprobs=full(False, jnp.bool),
        adjusted=full(False, jnp.bool),
        bias=full(0, jnp.float32, vocab_size),
        min_lens=full(0, jnp.int32),
        repetition_penalty=full(1, jnp.float32),
        frequency_penalty=full(0, jnp.float32),
        presence_penalty=full(0, jnp.float32),
        in_prompt=full(False, jnp.bool, vocab_size),
        counts=full(0, jnp.int32, vocab_size),
        token_classes=token_classes,
        logprobs=empty_table(num_slots, capacity),
    )


def admit_choice(
    state: SamplingState,
    slot: jax.Array,
    choice: Choice,
    prompt: jax.Array,
    prompt_len: jax.Array,
) -> SamplingState:
    """Takes a request's choice into a slot; nothing is left of the request before.

    Args:
      state: of all slots.
      slot: int32[].
      choice: of the request.
      prompt: int32[S], garbage behind `prompt_len`.
      prompt_len: int32[].
    """
    vocab_size = state.bias.shape[1]
    known = jnp.arange(prompt.shape[0], dtype=jnp.int32) < prompt_len
    in_prompt = jnp.zeros(vocab_size, jnp.bool)
    in_prompt = in_prompt.at[jnp.where(known, prompt, vocab_size)].set(True, mode="drop")
    key = jax.random.wrap_key_data(jnp.asarray(choice.seed), impl="threefry2x32")
    values = {name: getattr(choice, name) for name in _PLAIN} | {
        "keys": jax.random.key_data(jax.random.fold_in(key, choice.index)),
        "bias": 0.0 if choice.bias is None else choice.bias,
        "in_prompt": in_prompt,
        "counts": 0,
    }
    return state.replace(
        **{name: getattr(state, name).at[slot].set(value) for name, value in values.items()}
    )


def count_tokens(state: SamplingState, tokens: jax.Array, emitted: jax.Array) -> SamplingState:
    """Counts the first `emitted[b]` of tokens int32[B, n] into each slot's output."""
    num_slots, vocab_size = state.counts.shape
    place = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    counted = jnp.where(place < emitted[:, None], tokens, vocab_size)
    slots = jnp.arange(num_slots, dtype=jnp.int32)[:, None]
    return state.replace(counts=state.counts.at[slots, counted].add(1, mode="drop"))
