"""Runs a drafter step by step, and notes what it drafts after which text."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emsjax.drafters.from_states import FromStates
from emsjax.engine.draft import Draft
from emsjax.engine.drafter import Drafter, Observation, Sharing, WorthDrafting, observer
from emsjax.engine.engine import Engine
from emsjax.engine.job import Finished, Job
from emsjax.engine.slots import Slots
from emsjax.engine.state import DecodeState
from emsjax.loading.load import LoadedModel, load_model
from tests.drafters.trees import Paths, paths_of
from tests.engine.setup import make_engine, run_all
from tests.tiny import VOCAB_SIZE, checkpoint

TARGET = "llama"  # three layers, 32 wide
SLOTS, LENGTH, WIDTH = 3, 4, 4
# Longer than a chunk of a prompt.
HEADER, OTHER = ([5 + step * n * n % 83 for n in range(70)] for step in (1, 2))


@functools.cache
def target() -> LoadedModel:
    return load_model(checkpoint(TARGET))


@dataclass(frozen=True)
class Coached(FromStates):
    """Has a drafter draft, and offers the target something else: right tokens, then wrong ones.

    So all lengths of accepted drafts occur, whatever the drafter guesses. Its weights also hold the
    text that each slot will have.
    """

    inner: Any
    texts: np.ndarray
    tree: bool = False
    draft_length: int = LENGTH
    read_bytes: int = 0

    @property
    def observing(self) -> bool:
        return observer(self.inner) is not None

    @property
    def hidden_size(self) -> int:
        return self.inner.hidden_size

    @property
    def hidden_layers(self) -> tuple[int, ...]:
        return self.inner.hidden_layers

    @property
    def weights(self) -> Any:
        return self.inner.weights, self.texts

    def init(self, num_slots: int, capacity: int) -> Any:
        guesses = jnp.zeros((num_slots, LENGTH), jnp.int32)
        parents = guesses if self.inner.beam_rows > 1 else None
        shares = guesses.astype(jnp.float32)
        none = Draft(guesses, jnp.zeros(num_slots, jnp.int32), shares, parents=parents)
        # What is never written must never be read.
        cache = jax.tree.map(lambda x: x + jnp.nan, self.inner.init(num_slots, capacity))
        return cache, none

    def share(self, drafter_state: Any, slot: jax.Array, *places: jax.Array) -> Any:
        cache, drafted = drafter_state
        if isinstance(self.inner, Sharing):
            return self.inner.share(cache, slot, *places), drafted
        return self.inner.admit(cache, slot), drafted

    def observe(self, drafter_state: Any, weights: Any, seen: Observation) -> tuple[Any, jax.Array]:
        cache, hidden = self.inner.observe(drafter_state[0], weights[0], seen)
        return (cache, drafter_state[1]), hidden

    def move_kv(self, drafter_state: Any, *moved: jax.Array) -> Any:
        return self.inner.move_kv(drafter_state[0], *moved), drafter_state[1]

    def propose(self, state: DecodeState, weights: Any, worth: WorthDrafting) -> tuple[Draft, Any]:
        inner, texts = weights
        mine, cache = self.inner.propose(state.replace(drafter=state.drafter[0]), inner, worth)
        mine = mine._replace(source=None)
        numbers = jnp.arange(LENGTH, dtype=jnp.int32)[None]
        slots = jnp.arange(SLOTS, dtype=jnp.int32)[:, None]
        if not self.tree:
            right = texts[slots, state.lens[:, None] + numbers]
            number = (3 * state.lens + slots[:, 0]) % (LENGTH + 1)
            wrong = (right + 1) % VOCAB_SIZE
            offered = jnp.where(numbers < number[:, None], right, wrong)
            return Draft(offered, mine.lens), (cache, mine)
        # Two guesses for each place, of which one is right; its brother stands before or behind.
        depth = numbers // 2
        right = texts[slots, state.lens[:, None] + depth]
        first = (state.lens[:, None] + depth + slots) % 2
        offered = jnp.where(numbers % 2 == first, right, (right + 1) % VOCAB_SIZE)
        before = (state.lens[:, None] + depth - 1 + slots) % 2
        parents = jnp.where(depth == 0, -1, 2 * (depth - 1) + before)
        return Draft(offered, mine.lens, parents=parents), (cache, mine)


@functools.cache
def plain_text(prompt: tuple[int, ...]) -> list[int]:
    engine = make_engine(target().model, "none", 1, capacity=256)
    (result,) = run_all(engine, [Job(0, prompt, 40)])
    return [*prompt, *result.token_ids]


class Watched(Engine):
    """Runs step by step, and notes the text before each draft and what was drafted.

    A chain is a list of tokens, a tree is `Paths`.
    """

    def advance(self, state: DecodeState, max_steps: int, others_wait: bool) -> DecodeState:
        del max_steps
        before = jax.device_get((state.tokens, state.lens, state.prompt_lens, state.live))
        texts = np.zeros((SLOTS, self.capacity + LENGTH), np.int32)
        for slot in np.flatnonzero(before[3]):
            text = plain_text(tuple(before[0][slot, : before[2][slot]].tolist()))
            texts[slot, : len(text)] = text
        self.use_drafter(Coached(self.drafter.inner, texts, self.drafter.tree))
        state = super().advance(state, 1, others_wait)
        drafted = jax.device_get(state.drafter[1])
        for slot in np.flatnonzero(before[3]):
            if drafted.lens[slot]:
                text = before[0][slot, : before[1][slot]].tolist()
                guesses = drafted.tokens[slot, : drafted.lens[slot]].tolist()
                found = guesses if drafted.parents is None else paths_of(drafted, slot)
                self.seen.append((text, found))
        return state


def watched(drafter: Drafter, tree: bool = False, method: str = "ems") -> Watched:
    texts = np.zeros((SLOTS, 256 + LENGTH), np.int32)
    coached = Coached(drafter, texts, tree)
    made = make_engine(target().model, coached, SLOTS, capacity=256, method=method)
    made.__class__ = Watched
    made.seen = []
    return made


def decode(slots: Slots, *todo: Job) -> dict[object, Finished]:
    slots.submit(todo)
    ended: dict[object, Finished] = {}
    while slots.busy:
        ended |= {each.job.key: each for each in slots.step().ended}
    for job in todo:
        text = plain_text(tuple(job.prompt))[len(job.prompt) :]
        assert list(ended[job.key].token_ids) == text[: job.max_tokens]
    return ended


def check_drafts(engine: Watched, equals: Callable[[list[int], Any], bool], shares: bool) -> None:
    """Decodes texts that share prefixes and refill slots, and compares what is drafted.

    Args:
      engine: see `watched`.
      equals: whether a draft is what should follow a text.
      shares: whether slots take over what others have read.
    """
    slots = Slots(engine)
    prompts = [[7], HEADER, [*HEADER[:50], 9, 11], HEADER[40:60] * 7, HEADER[::-1], HEADER[:66]]
    ended = decode(slots, *(Job(n, prompt, 5 + 3 * n) for n, prompt in enumerate(prompts)))
    # Others begin like a text in a slot, free or live, and then branch off.
    ended |= decode(slots, Job("free", HEADER, 6))
    ended |= decode(slots, Job("again", [*plain_text(tuple(HEADER))[:74], 13, 8], 9))
    slots.submit([Job("live", OTHER, 30)])
    for _ in range(7):
        slots.step(more=True)
    ended |= decode(slots, Job("copied", [*OTHER, 13, 8], 9))
    if shares:
        cached = [ended[key].metrics.cached_prompt_tokens for key in ("again", "copied")]
        assert cached == [73, 69]
    accepted = [each.metrics.accepted_by_position for each in ended.values()]
    assert (np.sum(accepted, axis=0)[: LENGTH // 2] > 0).all()
    assert LENGTH in {len(drafts) for _, drafts in engine.seen}
    assert 1 in {longest(drafts) for _, drafts in engine.seen}, "there is no room for more"
    wrong = [text for text, drafts in engine.seen if not equals(text, drafts)]
    assert not wrong, f"{len(wrong)} of {len(engine.seen)}"
    assert len({tuple(drafts) for _, drafts in engine.seen}) > 20


def longest(drafts: list[int] | Paths) -> int:
    return len(drafts) if isinstance(drafts, list) else max(map(len, drafts))
