"""Drafts that follow the grammars of their slots."""

import jax.numpy as jnp

from emsjax.engine.draft import ROOT, Draft
from emsjax.engine.state import DecodeState
from emsjax.sampling.grammar import Grammars, allowed_length, forced

# The confidence in a token of a text that must follow: the model may only cut it into other tokens.
_SURE = 0.9


def in_grammar(draft: Draft, state: DecodeState) -> Draft:
    """Returns the draft with forced text drafted for nothing, and cut where a grammar forbids it.

    The guesses of a slot whose text must go on in one way are replaced by that text, unless they
    begin with it. Guesses of a tree that a grammar forbids stay, and are not accepted.

    Args:
      draft: the drafter's guesses.
      state: the state of all slots.
    """
    sampling = state.sampling
    if sampling is None or sampling.grammars is None or not draft.tokens.shape[1]:
        return draft
    draft = _with_forced(draft, state, sampling.grammars)
    if draft.parents is not None:
        return draft
    allowed = allowed_length(sampling.grammars, draft.tokens)
    return draft._replace(lens=jnp.minimum(draft.lens, allowed))


def _with_forced(draft: Draft, state: DecodeState, grammars: Grammars) -> Draft:
    tokens, count = forced(grammars, draft.tokens.shape[1])
    room = jnp.maximum(state.max_lens - state.lens - 1, 0)
    decoding = state.live & (state.lens - state.kv_lens == 1)
    count = jnp.where(decoding, jnp.minimum(count, room), 0)
    place = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    within = place < count[:, None]
    replaced = count > 0
    if draft.parents is None:
        begins = ((draft.tokens == tokens) | ~within).all(axis=1) & (draft.lens >= count)
        replaced &= ~begins
    here, mine = replaced[:, None], replaced[:, None] & within
    confidence, parents = draft.confidence, draft.parents
    if confidence is not None:
        confidence = jnp.where(here, _SURE, confidence)
    if parents is not None:
        parents = jnp.where(here, jnp.where(within, place - 1, ROOT), parents)
    return draft._replace(
        tokens=jnp.where(mine, tokens, jnp.where(here, 0, draft.tokens)),
        lens=jnp.where(replaced, count, draft.lens),
        confidence=confidence,
        parents=parents,
    )
