"""Drafts of EAGLE heads in every published format equal an oracle's, and change no text."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emsjax import LLM, SamplingParams
from emsjax.drafters import Eagle
from emsjax.drafters.from_states import FromStates
from emsjax.engine.draft import Draft
from emsjax.engine.drafter import Observation, WorthDrafting
from emsjax.engine.engine import Engine
from emsjax.engine.job import Finished, Job
from emsjax.engine.slots import Slots
from emsjax.engine.state import DecodeState
from emsjax.loading.drafter import load_drafter
from emsjax.loading.load import LoadedModel, load_model
from tests.drafters.eagle_heads import FORMS, TARGET, expected_drafts, head_directory
from tests.engine.setup import make_engine, run_all
from tests.tiny import VOCAB_SIZE, checkpoint

pytest.importorskip("torch")
SLOTS, LENGTH = 3, 4
# Longer than a chunk of a prompt.
HEADER, OTHER = ([5 + step * n * n % 83 for n in range(70)] for step in (1, 2))


@functools.cache
def target() -> LoadedModel:
    return load_model(checkpoint(TARGET))


@functools.cache
def head(name: str) -> Eagle:
    loaded = load_drafter(head_directory(name), target(), LENGTH, dtype="auto", narrowest=4)
    assert isinstance(loaded, Eagle)
    return loaded


@dataclass(frozen=True)
class Coached(FromStates):
    """Has a head draft, and offers the target something else: right tokens first, then wrong ones.

    So all lengths of accepted drafts occur, whatever the head guesses. Its weights also hold the
    text that each slot will have.
    """

    eagle: Eagle
    texts: np.ndarray
    tree: bool = False
    draft_length: int = LENGTH
    read_bytes: int = 0
    observing: bool = True

    @property
    def hidden_size(self) -> int:
        return self.eagle.hidden_size

    @property
    def hidden_layers(self) -> tuple[int, ...]:
        return self.eagle.hidden_layers

    @property
    def weights(self) -> Any:
        return self.eagle.weights, self.texts

    def init(self, num_slots: int, capacity: int) -> Any:
        none = Draft(jnp.zeros((num_slots, LENGTH), jnp.int32), jnp.zeros(num_slots, jnp.int32))
        # What is never written must never be read.
        cache = jax.tree.map(lambda x: x + jnp.nan, self.eagle.init(num_slots, capacity))
        return cache, none

    def share(self, drafter_state: Any, *places: jax.Array) -> Any:
        return self.eagle.share(drafter_state[0], *places), drafter_state[1]

    def observe(self, drafter_state: Any, weights: Any, seen: Observation) -> tuple[Any, jax.Array]:
        cache, hidden = self.eagle.observe(drafter_state[0], weights[0], seen)
        return (cache, drafter_state[1]), hidden

    def move_kv(self, drafter_state: Any, *moved: jax.Array) -> Any:
        return self.eagle.move_kv(drafter_state[0], *moved), drafter_state[1]

    def propose(self, state: DecodeState, weights: Any, worth: WorthDrafting) -> tuple[Draft, Any]:
        eagle, texts = weights
        mine, cache = self.eagle.propose(state.replace(drafter=state.drafter[0]), eagle, worth)
        mine = Draft(mine.tokens, mine.lens)
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
    """Runs step by step, and notes the text before each draft and what the head drafted."""

    def advance(self, state: DecodeState, max_steps: int, others_wait: bool) -> DecodeState:
        del max_steps
        before = jax.device_get((state.tokens, state.lens, state.prompt_lens, state.live))
        texts = np.zeros((SLOTS, self.capacity + LENGTH), np.int32)
        for slot in np.flatnonzero(before[3]):
            text = plain_text(tuple(before[0][slot, : before[2][slot]].tolist()))
            texts[slot, : len(text)] = text
        self.use_drafter(Coached(self.drafter.eagle, texts, self.drafter.tree))
        state = super().advance(state, 1, others_wait)
        drafted = jax.device_get(state.drafter[1])
        for slot in np.flatnonzero(before[3]):
            if drafted.lens[slot]:
                text = before[0][slot, : before[1][slot]].tolist()
                self.seen.append((text, drafted.tokens[slot, : drafted.lens[slot]].tolist()))
        return state


def watched(name: str, kind: str) -> Watched:
    texts = np.zeros((SLOTS, 256 + LENGTH), np.int32)
    made = make_engine(
        target().model,
        Coached(head(name), texts, kind == "tree"),
        SLOTS,
        capacity=256,
        method="vanilla" if kind == "vanilla" else "ems",
    )
    made.__class__ = Watched
    made.seen = []
    return made


CASES = [
    *((name, "chain") for name in FORMS),
    ("speculators", "tree"),
    pytest.param("eagle1", "vanilla", marks=pytest.mark.slow),
]


def decode(slots: Slots, *todo: Job) -> dict[object, Finished]:
    slots.submit(todo)
    ended: dict[object, Finished] = {}
    while slots.busy:
        ended |= {each.job.key: each for each in slots.step().ended}
    for job in todo:
        text = plain_text(tuple(job.prompt))[len(job.prompt) :]
        assert list(ended[job.key].token_ids) == text[: job.max_tokens]
    return ended


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_drafts_equal_those_of_an_oracle(name: str, kind: str):
    """Prompts are longer than a chunk, begin like others, and refill slots."""
    engine = watched(name, kind)
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
    if kind != "vanilla":
        cached = [ended[key].metrics.cached_prompt_tokens for key in ("again", "copied")]
        assert cached == [73, 69]
    accepted = [each.metrics.accepted_by_position for each in ended.values()]
    assert (np.sum(accepted, axis=0)[: LENGTH // 2] > 0).all()
    assert {len(drafts) for _, drafts in engine.seen} >= {1, LENGTH}
    wrong = [
        text
        for text, drafts in engine.seen
        if drafts != expected_drafts(name, text, LENGTH)[: len(drafts)]
    ]
    assert not wrong, f"{len(wrong)} of {len(engine.seen)}"
    assert len({tuple(drafts) for _, drafts in engine.seen}) > 20


def test_outputs_that_share_a_prompt_say_so():
    """Although the head reads one more token of it again than the target."""
    engine = make_engine(target().model, head("eagle3"), SLOTS, trace=True)
    group = object()
    traces = [r.trace for r in run_all(engine, [Job(n, HEADER, 6, group=group) for n in range(3)])]
    assert [trace.prompt_shared for trace in traces] == [False, True, True]


@pytest.mark.slow
def test_texts_are_those_of_plain_decoding():
    prompts = [HEADER, [7], [*HEADER[:50], 9, 11], HEADER[40:60] * 4]
    params = [SamplingParams(max_tokens=30, temperature=t, seed=3) for t in (0, 0.8, 1.2, 0)]
    options = {"max_batch_size": SLOTS, "max_model_len": 200}
    plain = LLM(str(checkpoint(TARGET)), drafter="none", **options).generate(prompts, params)
    draft = str(head_directory("speculators"))
    llm = LLM(str(checkpoint(TARGET)), draft_model=draft, planner=False, **options)
    outputs = llm.generate(prompts, params)
    assert [o.outputs[0].token_ids for o in outputs] == [p.outputs[0].token_ids for p in plain]
    assert sum(o.metrics.drafted_tokens for o in outputs) > 100
