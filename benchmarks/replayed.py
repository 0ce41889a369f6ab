"""Decodes recorded texts again with the real loop, drafters and planner, but without a model.

A stand-in for the target knows every text, and one for a model that drafts has its recorded drafts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.drafts import DEPTH, Recorded
from benchmarks.logged import LoggedEngine
from emsjax.drafters.combined import Combined
from emsjax.drafters.from_states import FromStates
from emsjax.engine.draft import Draft
from emsjax.engine.drafter import Drafter, WorthDrafting
from emsjax.engine.job import Finished, Job
from emsjax.engine.ladder import Rung
from emsjax.engine.load import load_of
from emsjax.engine.packing import PackedBatch
from emsjax.engine.state import DecodeState
from emsjax.engine.step_costs import StepCosts
from emsjax.engine.tree import best_of, path_products, tree_of
from emsjax.sampling.choose import Chosen
from emsjax.sampling.rows import Rows
from emsjax.shapes import round_up

# Large, so that few steps read prompts: those are not charged.
PREFILL_CHUNK = 8192


class Replay(nnx.Module):
    """A stand-in for the target: it knows every text, and tells them apart by their first token."""

    dtype = jnp.dtype(jnp.float32)

    def __init__(self, texts: np.ndarray, vocab_size: int):
        self.texts = nnx.Param(jnp.asarray(texts))
        self.max_positions = texts.shape[1]
        self.vocab_size = vocab_size

    def cache_spec(self, num_slots: int, capacity: int) -> jax.ShapeDtypeStruct:
        """A cache that holds each slot's tokens instead of keys and values."""
        return jax.ShapeDtypeStruct((1, num_slots, capacity, 1, 1), jnp.float32)

    def move_kv(self, cache: Any, sources: Any, targets: Any, moved: Any) -> Any:
        """Moves nothing: only the first token of a slot is ever read."""
        del sources, targets, moved
        return cache

    def __call__(
        self, batch: PackedBatch, cache: jax.Array, *, max_q_len: int
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the token after each row, as the row's hidden state [T, 1], and the cache.

        For a guess that is not on the text's path it is a token of the text all the same; nothing
        that follows such a guess is ever accepted.
        """
        del max_q_len
        tokens = batch.tokens.astype(jnp.float32)[:, None, None]
        cache = cache.at[0, batch.slot_ids, batch.positions].set(tokens, mode="drop")
        number = cache[0, jnp.minimum(batch.slot_ids, cache.shape[1] - 1), 0, 0, 0]
        texts = self.texts[...]
        place = jnp.minimum(batch.positions + 1, texts.shape[1] - 1)
        following = texts[number.astype(jnp.int32) % texts.shape[0], place]
        return following.astype(jnp.float32)[:, None], cache

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Returns the token that follows, which `_choose` takes, instead of logits."""
        return hidden


def _choose(logits: jax.Array, rows: Rows, state: DecodeState) -> Chosen:
    del rows, state
    return Chosen(logits[:, 0].astype(jnp.int32), None)


@dataclass(frozen=True)
class Replayed(FromStates):
    """A stand-in for a model that drafts. Its state is the number of passes it made.

    Attributes:
      weights: `Draft` of each place of each text, [N, P, n].
      draft_length: k.
      tree: whether the draft branches.
      read_bytes: any number but 0, so that the planner is asked how much to draft.
    """

    weights: Draft = field(repr=False)
    draft_length: int
    tree: bool
    read_bytes: int = 1
    hidden_size: int = 0
    hidden_layers: tuple[int, ...] = ()

    def init(self, num_slots: int, capacity: int) -> jax.Array:
        """Returns that no pass was made."""
        del num_slots, capacity
        return jnp.zeros((), jnp.int32)

    def propose(
        self, state: DecodeState, weights: Draft, worth: WorthDrafting
    ) -> tuple[Draft, jax.Array]:
        """Returns what the model drafted here in as many passes as are worth it."""
        ready, length = self.plan(state, worth)
        length = jnp.where(ready.any(), jnp.minimum(length, DEPTH), 0)
        passes = state.drafter + length
        samples, places = weights.lens.shape
        sample = jnp.minimum(state.tokens[:, 0], samples - 1)
        place = jnp.clip(state.lens - state.prompt_lens, 0, places - 1)
        draft: Draft = jax.tree.map(lambda x: x[sample, place].astype(jnp.int32), weights)
        draft = draft._replace(confidence=weights.confidence[sample, place])
        lens = jnp.where(ready, draft.lens, 0)
        if not self.tree:
            parts = (draft.tokens, draft.confidence, draft.source)
            tokens, confidence, source = (x[:, : self.draft_length] for x in parts)
            return Draft(tokens, jnp.minimum(lens, length), confidence, source), passes
        tree = tree_of(draft)
        assert tree is not None
        there = jnp.arange(draft.tokens.shape[1])[None] < lens[:, None]
        shares = path_products(draft.confidence, draft.parents)
        shares = jnp.where(there & (tree.depths[:, 1:] <= length), shares, 0.0)
        return best_of(draft, shares, self.draft_length), passes


class Charged(NamedTuple):
    """The facts that decide what a step costs and yields, arrays [steps].

    Attributes:
      rung: index into the ladder.
      cached: tokens in the cache, over all slots, in whole blocks.
      passes: of the model that drafts.
      emitted: tokens emitted.
      verified: draft tokens verified.
    """

    rung: np.ndarray
    cached: np.ndarray
    passes: np.ndarray
    emitted: np.ndarray
    verified: np.ndarray


class Texts(NamedTuple):
    """Recorded texts in a vocabulary that is no larger than needed, each after its own number.

    Attributes:
      texts: int32[N, S].
      prompt_lens: int32[N].
      lens: int32[N].
      vocab_size: V.
      drafts: by name, [N, P, k].
    """

    texts: np.ndarray
    prompt_lens: np.ndarray
    lens: np.ndarray
    vocab_size: int
    drafts: dict[str, Draft]

    @classmethod
    def of(cls, recorded: Recorded) -> "Texts":
        """Renumbers the tokens."""
        count = len(recorded.texts)
        guessed = [draft["tokens"].ravel() for draft in recorded.drafts.values()]
        used = np.unique(np.concatenate([recorded.texts.ravel(), *guessed]))

        def renumbered(tokens: np.ndarray) -> np.ndarray:
            return (np.searchsorted(used, tokens) + count).astype(np.int32)

        capacity = round_up(int(recorded.lens.max()) + 2, 256)
        texts = np.zeros((count, capacity), np.int32)
        texts[:, 0] = np.arange(count)
        texts[:, 1 : recorded.texts.shape[1] + 1] = renumbered(recorded.texts)
        drafts = {
            name: Draft(
                renumbered(of["tokens"]), of["lens"], of["confidence"], of["source"], of["parents"]
            )
            for name, of in recorded.drafts.items()
        }
        lens = recorded.prompt_lens + 1, recorded.lens + 1
        return cls(texts, *lens, len(used) + count, drafts)


class Simulation:
    """One way of drafting at one batch size, compiled once for all hardware."""

    def __init__(self, texts: Texts, drafter: Drafter, ladder: Sequence[Rung], size: int):
        self.ladder = ladder
        self._texts = texts
        self._engine = LoggedEngine(
            Replay(texts.texts, texts.vocab_size),
            drafter,
            ladder,
            note=self._note,
            num_slots=size,
            capacity=texts.texts.shape[1],
            choose=_choose,
        )
        outputs = (texts.lens - texts.prompt_lens).tolist()
        prompts = [
            text[:length].tolist()
            for text, length in zip(texts.texts, texts.prompt_lens, strict=True)
        ]
        jobs = [Job(n, prompt, outputs[n]) for n, prompt in enumerate(prompts)]
        # Each batch is full: the last one takes texts again.
        jobs += jobs[: -len(jobs) % size]
        self._waves = [jobs[n : n + size] for n in range(0, len(jobs), size)]

    def run(self, costs: StepCosts | None) -> Charged:
        """Runs one batch after another; returns the steps that read no prompt.

        Each batch runs until its last text ends. If slots were refilled, a large batch would read
        some prompt in almost every step.

        Args:
          costs: to plan with; None verifies every draft.
        """
        self._engine.use_costs(costs)
        self._engine.forget()
        for wave in self._waves:
            for finished in self._engine.run(wave):
                if finished is not None:
                    self._check(finished)
        reading, rows, widest, *facts = self._engine.take_log()
        rung = _rungs(self.ladder, rows, widest)
        return Charged(*(x[~reading] for x in (rung, *facts)))

    def _check(self, finished: Finished) -> None:
        """Checks that a text is the recorded one, without which the simulation means nothing."""
        start = len(finished.job.prompt)
        expected = self._texts.texts[int(str(finished.job.key)), start:]
        assert list(finished.token_ids) == expected[: len(finished.token_ids)].tolist()

    def _note(self, before: DecodeState, after: DecodeState) -> Any:
        stats, now = before.stats, after.stats
        reading = before.live & (before.lens - before.kv_lens > 1)
        rows = now.rows - stats.rows
        made = _passes(after.drafter) - _passes(before.drafter)
        return (
            reading.any(),
            rows.sum(),
            rows.max(),
            load_of(before, False).cached,
            made,
            (after.lens - before.lens).sum(),
            (now.drafted - stats.drafted).sum(),
        )


def _passes(drafter_state: Any) -> jax.Array:
    """Returns how many passes a model has made, if there is one."""
    if isinstance(drafter_state, tuple) and drafter_state:
        return _passes(drafter_state[-1])
    return drafter_state if isinstance(drafter_state, jax.Array) else jnp.zeros((), jnp.int32)


def _rungs(ladder: Sequence[Rung], rows: np.ndarray, widest: np.ndarray) -> np.ndarray:
    """Returns the narrowest rung that holds a step's rows, int[steps]."""
    fits = np.asarray([(rows <= rung.capacity) & (widest <= rung.max_q_len) for rung in ladder])
    return np.argmax(fits, axis=0)


def rate(steps: Charged, costs: StepCosts) -> float:
    """Tokens per second of some steps at some costs."""
    seconds = np.asarray(costs.rungs)[steps.rung] + np.asarray(costs.cached)[steps.rung] * (
        steps.cached
    )
    seconds = seconds + float(costs.draft) * steps.passes
    return float(steps.emitted.sum() / seconds.sum())


def combined(lookup: Drafter, model: Replayed, *, tree: bool) -> Combined:
    """Both at once, as the default is."""
    return Combined(lookup, model, tree=tree)
