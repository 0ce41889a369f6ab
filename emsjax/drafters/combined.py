"""Prompt lookup for samples with a confident match, a draft model for the others."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from emsjax.drafters.merge import merge
from emsjax.engine.acceptance import expect, predict, survival_of
from emsjax.engine.devices import SAME
from emsjax.engine.draft import Draft
from emsjax.engine.drafter import (
    COSTLY_SOURCE,
    Drafter,
    Observation,
    Sharing,
    WorthDrafting,
    observer,
    passes_of,
    places_of,
)
from emsjax.engine.state import DecodeState
from emsjax.engine.step_costs import Passes

# By how many accepted tokens the model must beat what was found. Drafting takes time: about a
# quarter of a plain step (SmolLM2-135M-Instruct with the draft that comes with it, on a CPU).
DRAFTING = 0.25


@dataclass(frozen=True)
class Combined:
    """Two drafters. Each sample's draft comes from the one that promises more accepted tokens.

    Attributes:
      lookup: finds drafts at next to no cost.
      model: drafts for the samples without a confident match, and does not run if there are none.
      tree: whether both drafts of a sample compete for rows, as the branches of a tree.
    """

    lookup: Drafter
    model: Drafter
    tree: bool = False

    @property
    def draft_length(self) -> int:
        """k, the larger of the two drafters'."""
        return max(self.lookup.draft_length, self.model.draft_length)

    @property
    def read_bytes(self) -> int:
        """Bytes of weights that a pass of the model reads."""
        return self.model.read_bytes

    def passes(self, num_slots: int) -> Passes:
        """Returns the model's passes."""
        return passes_of(self.model, num_slots)

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states that the model reads, 0 for none."""
        return self.model.hidden_size

    @property
    def hidden_layers(self) -> tuple[int, ...]:
        """The layers whose inputs the model reads, see `Drafter.hidden_layers`."""
        return self.model.hidden_layers

    @property
    def weights(self) -> Any:
        """The model's weights."""
        return self.model.weights

    @property
    def state_places(self) -> Any:
        """The places of both drafters' states on devices that share the target."""
        return SAME, places_of(self.model)

    def init(self, num_slots: int, capacity: int) -> Any:
        """Returns the states of both drafters."""
        return self.lookup.init(num_slots, capacity), self.model.init(num_slots, capacity)

    def admit(self, drafter_state: Any, slot: jax.Array) -> Any:
        """Returns the states of both drafters after a slot has received a new request."""
        looked, modelled = drafter_state
        return self.lookup.admit(looked, slot), self.model.admit(modelled, slot)

    def share(
        self, drafter_state: Any, slot: jax.Array, source: jax.Array, length: jax.Array
    ) -> Any:
        """Returns the states after a new request; only a model has more to do than at `admit`."""
        looked, modelled = drafter_state
        looked = self.lookup.admit(looked, slot)
        if isinstance(self.model, Sharing):
            return looked, self.model.share(modelled, slot, source, length)
        return looked, self.model.admit(modelled, slot)

    @property
    def observing(self) -> bool:
        """Whether the model observes, see `Observing`."""
        return observer(self.model) is not None

    def observe(self, drafter_state: Any, weights: Any, seen: Observation) -> tuple[Any, jax.Array]:
        """Lets the model read the rows of a step."""
        model, (looked, modelled) = observer(self.model), drafter_state
        assert model is not None
        modelled, hidden = model.observe(modelled, weights, seen)
        return (looked, modelled), hidden

    def move_kv(
        self, drafter_state: Any, sources: jax.Array, targets: jax.Array, moved: jax.Array
    ) -> Any:
        """Returns the states after the model has moved its K/V."""
        model, (looked, modelled) = observer(self.model), drafter_state
        assert model is not None
        return looked, model.move_kv(modelled, sources, targets, moved)

    def propose(self, state: DecodeState, weights: Any, worth: WorthDrafting) -> tuple[Draft, Any]:
        """Looks up drafts for all slots, then lets the model draft where that promises more."""
        looked, modelled = state.drafter
        found, looked = self.lookup.propose(state.replace(drafter=looked), (), worth)
        likely_found = predict(found, state.experience)
        survival = survival_of(likely_found, found.lens, found.parents)
        found_promises = survival.sum(axis=1)
        expected = expect(state.experience, COSTLY_SOURCE, self.model.draft_length)
        confident = found_promises > jnp.cumprod(expected, axis=1).sum(axis=1) - DRAFTING
        if self.tree:  # both compete for rows, and `worth` weighs what drafting costs
            confident = jnp.zeros_like(confident)
        decoding = state.live & (state.lens - state.kv_lens == 1)
        # A slot that reads its prompt will not verify what was found.
        there = jnp.where(decoding[:, None], survival, 0.0)
        rest = state.replace(drafter=modelled, live=state.live & ~confident)
        guessed, modelled = self.model.propose(
            rest, weights, lambda expected, *_: worth(expected, there, self.tree)
        )
        guessed = guessed._replace(lens=jnp.where(rest.live, guessed.lens, 0))
        # Now the model has reported its confidence, so the two are compared again. A slot for which
        # the model drafted nothing promises nothing.
        likely = predict(guessed, state.experience)
        if self.tree or guessed.parents is not None or found.parents is not None:
            pair = _with_source(guessed), _with_source(found)
            draft = merge(*pair, (likely, likely_found), self.draft_length)
        else:
            guessed_promises = survival_of(likely, guessed.lens).sum(axis=1)
            draft = self._merge(found_promises >= guessed_promises, found, guessed)
        costly, cache = guessed._replace(cache=None), guessed.cache
        return draft._replace(costly=costly, cache=cache), (looked, modelled)

    def _merge(self, use_found: jax.Array, found: Draft, guessed: Draft) -> Draft:
        found, guessed = (_widen(draft, self.draft_length) for draft in (found, guessed))
        return jax.tree.map(
            lambda a, b: jnp.where(use_found.reshape(-1, *[1] * (a.ndim - 1)), a, b), found, guessed
        )


def _widen(draft: Draft, length: int) -> Draft:
    """Returns the draft with room for `length` tokens, and with a source."""
    more = ((0, 0), (0, length - draft.tokens.shape[1]))
    draft = _with_source(draft)
    assert draft.confidence is not None
    assert draft.source is not None
    padded = (jnp.pad(x, more) for x in (draft.tokens, draft.confidence, draft.source))
    tokens, confidence, source = padded
    return Draft(tokens, draft.lens, confidence, source)


def _with_source(draft: Draft) -> Draft:
    if draft.source is not None:
        return draft
    return draft._replace(source=jnp.zeros_like(draft.tokens))
