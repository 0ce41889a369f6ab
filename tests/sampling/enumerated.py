"""A model so small that the probability of every sequence is known, and a test against them."""

import functools
import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from emsjax.engine.draft import Draft
from emsjax.engine.drafter import Drafter, Stateless
from emsjax.engine.engine import Engine
from emsjax.engine.job import Job
from emsjax.engine.ladder import make_ladder
from emsjax.engine.packing import pack
from emsjax.engine.state import DecodeState
from emsjax.models.config import DecoderConfig, Rope
from emsjax.models.decoder import DecoderLM
from emsjax.sampling.choice import Choice, make_choice
from emsjax.sampling.draw import draw
from tests.sampling import chi_square

VOCAB, LENGTH = 6, 3
PROMPT = (1, 2, 3, 1, 2)
SEQUENCES = list(itertools.product(range(VOCAB), repeat=LENGTH))
CONFIG = DecoderConfig(
    vocab_size=VOCAB,
    hidden_size=16,
    intermediate_size=16,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    max_positions=64,
    norm="rms",
    norm_eps=1e-5,
    activation="silu",
    gated=True,
    rope=Rope((1.0, 0.3, 0.1, 0.03)),
    tied=False,
)


@functools.cache
def model() -> DecoderLM:
    """Returns a model with weights so wide that the next token depends on all before it."""
    made = DecoderLM(CONFIG, rngs=nnx.Rngs(5))
    made.embedder.tokens[...] *= 50
    made.head.kernel[...] *= 1.3
    return made


@functools.cache
def next_logits() -> dict[tuple[int, ...], np.ndarray]:
    """Returns the logits after the prompt and each beginning of an output, float64[V]."""
    beginnings = [s for n in range(LENGTH) for s in itertools.product(range(VOCAB), repeat=n)]
    tokens = np.zeros((len(beginnings), 16), np.int32)
    lens = np.asarray([len(PROMPT) + len(s) for s in beginnings], np.int32)
    for row, beginning in zip(tokens, beginnings, strict=True):
        row[: len(PROMPT) + len(beginning)] = PROMPT + beginning
    batch = pack(jnp.asarray(tokens), jnp.zeros_like(lens), jnp.asarray(lens), int(lens.sum()))
    spec = model().cache_spec(len(beginnings), 256)
    hidden, _ = model()(batch, jnp.zeros(spec.shape, spec.dtype), max_q_len=16)
    logits = np.asarray(model().logits(hidden[np.cumsum(lens) - 1]), np.float64)
    return dict(zip(beginnings, logits, strict=True))


@dataclass(frozen=True)
class Rule:
    """Sampling parameters, and the resulting probabilities, computed token by token."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    bias: dict[int, float] = field(default_factory=dict, hash=False)

    def choice(self, seed: int) -> Choice:
        given = {name: value for name, value in vars(self).items() if name != "bias"}
        bias = np.zeros(VOCAB, np.float32)
        for token, value in self.bias.items():
            bias[token] = value
        return make_choice(seed=seed, bias=bias if self.bias else None, **given)

    def next(self, beginning: tuple[int, ...]) -> np.ndarray:
        """Returns the probabilities of the next token, float64[V]."""
        logits = next_logits()[beginning].copy()
        for token in range(VOCAB):
            logits[token] += self.bias.get(token, 0.0)
            if token in PROMPT + beginning:
                up = logits[token] < 0
                logits[token] *= self.repetition_penalty ** (1 if up else -1)
            logits[token] -= self.frequency_penalty * beginning.count(token)
            logits[token] -= self.presence_penalty * (token in beginning)
        if self.temperature == 0:
            return np.eye(VOCAB)[logits.argmax()]
        p = np.exp((logits - logits.max()) / self.temperature)
        order = np.argsort(-p)
        if self.top_k:
            p[order[self.top_k :]] = 0
        p /= p.sum()
        before = np.cumsum(p[order]) - p[order]
        p[order[before >= self.top_p]] = 0
        p[p < self.min_p * p.max()] = 0
        return p / p.sum()

    def sequences(self) -> np.ndarray:
        """Returns the probability of each of `SEQUENCES`."""
        found = {(): 1.0}
        for _ in range(LENGTH):
            found = {
                (*s, t): p * q for s, p in found.items() for t, q in enumerate(self.next(s)) if q
            }
        return np.asarray([found.get(s, 0.0) for s in SEQUENCES])


@dataclass(frozen=True)
class Liar(Stateless):
    """Guesses the same tokens whatever came before, including ids outside the vocabulary."""

    draft_length: int = 2
    guesses: tuple[int, ...] = (4, VOCAB + 3)

    def propose(self, state: DecodeState, weights: Any, worth: Any) -> tuple[Draft, Any]:
        num_slots = state.lens.shape[0]
        tokens = jnp.broadcast_to(jnp.asarray(self.guesses, jnp.int32), (num_slots, 2))
        return Draft(tokens, jnp.full(num_slots, 2, jnp.int32)), ()


@dataclass(frozen=True)
class Sampler(Stateless):
    """Samples its guesses from another distribution than the target's, with the target's noise."""

    draft_length: int = 3

    def propose(self, state: DecodeState, weights: Any, worth: Any) -> tuple[Draft, Any]:
        table = jax.nn.log_softmax(jax.random.normal(jax.random.key(3), (VOCAB, VOCAB)))
        slots = jnp.arange(state.lens.shape[0], dtype=jnp.int32)
        last, guesses = state.tokens[slots, jnp.maximum(state.lens - 1, 0)], []
        for step in range(self.draft_length):
            position = state.lens - 1 + jnp.int32(step)
            last = draw(table[last], state.sampling.keys, position)
            guesses.append(last)
        lens = jnp.full(slots.shape, self.draft_length, jnp.int32)
        return Draft(jnp.stack(guesses, axis=1), lens), ()


def make_engine(drafter: Drafter, num_slots: int, *, exact: bool = True) -> Engine:
    """Makes an engine with one capacity, so that little is compiled, or with a ladder."""
    ladder = make_ladder(
        num_slots, drafter.draft_length, exact=exact, exact_capacity=16, prefill_chunk=32
    )
    return Engine(model(), drafter, ladder, num_slots=num_slots, capacity=256)


def sample(engine: Engine, rules: Iterable[tuple[Rule, int]]) -> dict[Rule, Counter]:
    """Counts how often each sequence occurs for each rule; every pair is one rule and one seed."""
    found: dict[Rule, Counter] = {}
    jobs = (Job(rule, PROMPT, LENGTH, choice=rule.choice(seed)) for rule, seed in rules)
    for finished in engine.run(jobs):
        found.setdefault(finished.job.key, Counter())[finished.token_ids] += 1
    return found


def p_value(found: Counter, rule: Rule) -> float:
    """Returns the p-value of the test that the counts come from the rule's distribution."""
    counts = np.asarray([found[sequence] for sequence in SEQUENCES])
    return chi_square.p_value(counts, rule.sequences())
