"""The sampling state of all slots, on the device."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from emsjax.limits import MAX_BAD_WORD_TOKENS, MAX_BAD_WORDS, MAX_SCHEDULED
from emsjax.sampling.choice import DTYPES, NEUTRAL, Choice, Settings
from emsjax.sampling.grammar import NO_ROW, Grammars, Tables, advance
from emsjax.sampling.logprobs import Logprobs, empty_table
from emsjax.sampling.rows import NO_TOKEN
from emsjax.sampling.schedule import Scheduled


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SamplingState:
    """How the tokens of each slot are chosen, one row per slot.

    The state exists only in runs in which some request needs more than the likeliest token.

    Attributes:
      keys: uint32[B, 2], the random key of each slot's noise.
      settings: the sampling parameters of the slots, [B] each.
      bias: float32[B, V], added to the logits; -inf for tokens that must not be chosen.
      in_prompt: bool[B, V], whether each token is in the prompt.
      counts: int32[B, V], how often each token is in the output.
      words: int32[B, N, L], words of which the last token must not follow the others. The tokens of
        a word are in reverse order; unused entries are `NO_TOKEN`.
      scheduled: the tokens that are forced or forbidden at one place of a slot's text, [B, N] each.
      token_classes: uint8[V], see `sampling.adapt`.
      logprobs: the table of log-probabilities, for slots that record them.
      grammars: the grammars of the slots; None until a request has one.
    """

    keys: jax.Array
    settings: Settings
    bias: jax.Array
    in_prompt: jax.Array
    counts: jax.Array
    words: jax.Array
    scheduled: Scheduled
    token_classes: jax.Array
    logprobs: Logprobs
    grammars: Grammars | None = None

    def replace(self, **changes: Any) -> "SamplingState":
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


def empty_sampling(num_slots: int, capacity: int, token_classes: jax.Array) -> SamplingState:
    """Returns the state for B slots of S tokens, all greedy.

    Args:
      num_slots: B.
      capacity: S.
      token_classes: uint8[V], see `sampling.adapt`.
    """
    vocab_size = token_classes.shape[0]

    def full(value: Any, dtype: Any, *shape: int) -> jax.Array:
        return jnp.full((num_slots, *shape), value, dtype)

    return SamplingState(
        keys=full(0, jnp.uint32, 2),
        settings=jax.tree.map(lambda neutral: full(neutral, DTYPES[type(neutral)]), NEUTRAL),
        bias=full(0, jnp.float32, vocab_size),
        in_prompt=full(False, jnp.bool, vocab_size),
        counts=full(0, jnp.int32, vocab_size),
        words=full(NO_TOKEN, jnp.int32, MAX_BAD_WORDS, MAX_BAD_WORD_TOKENS),
        scheduled=Scheduled(
            lens=full(0, jnp.int32, MAX_SCHEDULED),
            tokens=full(0, jnp.int32, MAX_SCHEDULED),
            forced=full(False, jnp.bool, MAX_SCHEDULED),
        ),
        token_classes=token_classes,
        logprobs=empty_table(num_slots, capacity),
    )


def with_tables(state: SamplingState, tables: Tables) -> SamplingState:
    """Returns the state with room for grammars, of which no slot has one."""
    return state.replace(
        grammars=Grammars(tables, jnp.full(state.keys.shape[0], NO_ROW, jnp.int32))
    )


def admit_choice(
    state: SamplingState,
    slot: jax.Array,
    choice: Choice,
    prompt: jax.Array,
    prompt_len: jax.Array,
    first_row: jax.Array | None = None,
) -> SamplingState:
    """Puts a request's choice into a slot; nothing of the previous request remains.

    Args:
      state: the state of all slots.
      slot: int32[], the slot to fill.
      choice: how the request's tokens are chosen.
      prompt: int32[S]; entries from `prompt_len` on have no meaning.
      prompt_len: int32[].
      first_row: int32[], the row of the tables at which the request's grammar begins; None or
        `NO_ROW` if it has none.
    """
    vocab_size = state.bias.shape[1]
    known = jnp.arange(prompt.shape[0], dtype=jnp.int32) < prompt_len
    in_prompt = jnp.zeros(vocab_size, jnp.bool)
    in_prompt = in_prompt.at[jnp.where(known, prompt, vocab_size)].set(True, mode="drop")
    key = jax.random.wrap_key_data(jnp.asarray(choice.seed), impl="threefry2x32")
    bias = 0.0 if choice.bias is None else choice.bias

    grammars = state.grammars
    if grammars is not None:
        row = jnp.int32(NO_ROW) if first_row is None else first_row
        grammars = grammars._replace(rows=grammars.rows.at[slot].set(row))

    def put(all_slots: Any, new: Any) -> Any:
        return jax.tree.map(lambda x, value: x.at[slot].set(value), all_slots, new)

    # Folding in the index gives each sample of a request different noise.
    return state.replace(
        keys=state.keys.at[slot].set(jax.random.key_data(jax.random.fold_in(key, choice.index))),
        settings=put(state.settings, choice.settings),
        words=put(state.words, choice.words),
        scheduled=put(state.scheduled, choice.scheduled),
        bias=state.bias.at[slot].set(bias),
        in_prompt=state.in_prompt.at[slot].set(in_prompt),
        counts=state.counts.at[slot].set(0),
        grammars=grammars,
    )


def note_tokens(state: SamplingState, tokens: jax.Array, emitted: jax.Array) -> SamplingState:
    """Takes note of the first `emitted[b]` of tokens int32[B, n]: their counts and the grammar."""
    num_slots, vocab_size = state.counts.shape
    place = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    counted = jnp.where(place < emitted[:, None], tokens, vocab_size)
    slots = jnp.arange(num_slots, dtype=jnp.int32)[:, None]
    counts = state.counts.at[slots, counted].add(1, mode="drop")
    grammars = state.grammars
    if grammars is not None:
        grammars = advance(grammars, tokens, emitted)
    return state.replace(counts=counts, grammars=grammars)
