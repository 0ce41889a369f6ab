"""Sequences occur with the probabilities that the model and the parameters imply."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
import pytest

from emsjax.drafters import NoDrafter, PromptLookup
from emsjax.engine import loop
from emsjax.engine.drafter import Drafter
from emsjax.engine.job import Job
from emsjax.engine.state import DecodeState
from emsjax.engine.step_plan import Planned
from emsjax.engine.verify import Verdict
from emsjax.sampling import choose as choosing
from emsjax.sampling.choose import Chosen
from emsjax.sampling.filters import Filters, keep, scale
from tests.engine.setup import make_drafter
from tests.sampling.enumerated import (
    PROMPT,
    VOCAB,
    Liar,
    Rule,
    Sampler,
    make_engine,
    model,
    p_value,
    sample,
)

# Fixed before the first run. The seeds are fixed too, so that a test always passes or always fails.
SIGNIFICANCE = 1e-3
SEQUENCES = 10_000
RULES = (
    Rule(temperature=1.0),
    Rule(temperature=0.3),
    Rule(temperature=0.7, top_p=0.8),
    Rule(temperature=1.5, top_k=4, top_p=0.9, min_p=0.05),
    Rule(repetition_penalty=1.5, frequency_penalty=0.7, presence_penalty=0.4, bias={4: 1.0}),
    Rule(temperature=0, repetition_penalty=1.3),
)
DRAFTERS: dict[str, Drafter] = {
    "none": NoDrafter(),
    "prompt-lookup": PromptLookup(3, 2, 1),
    "liar": Liar(),
    "sampler": Sampler(),
}
# Drafters with weights, which are made for the model when needed.
COMPUTING = ("draft-model", "recurrent", "tree")


def drafter_of(name: str) -> Drafter:
    return DRAFTERS[name] if name in DRAFTERS else make_drafter(model(), name)


def mixed(rules: tuple[Rule, ...], count: int) -> Iterator[tuple[Rule, int]]:
    """Yields each rule `count` times with different seeds; neighbours have different rules."""
    for seed in range(count * len(rules)):
        yield rules[seed % len(rules)], seed


def check(drafter: str, num_slots: int, rules: tuple[Rule, ...], *, exact: bool) -> None:
    engine = make_engine(drafter_of(drafter), num_slots, exact=exact)
    found = sample(engine, mixed(rules, SEQUENCES))
    for rule in rules:
        assert found[rule].total() == SEQUENCES
        assert p_value(found[rule], rule) > SIGNIFICANCE, rule


def test_the_probabilities_of_all_sequences_sum_to_one():
    for rule in RULES:
        assert rule.sequences().sum() == pytest.approx(1, abs=1e-12)
    assert len({tuple(rule.sequences()) for rule in RULES}) == len(RULES)


def test_prompt_lookup_in_a_batch():
    check("prompt-lookup", 8, RULES[3:4], exact=True)


@pytest.mark.slow
@pytest.mark.parametrize("drafter", [*DRAFTERS, *COMPUTING])
def test_every_drafter_and_rule_in_mixed_batches(drafter: str):
    # A seed gives the same tokens with every drafter, so all rules are needed for one drafter only.
    rules = RULES if drafter == "prompt-lookup" else RULES[3:4]
    check(drafter, 8, rules, exact=False)


@pytest.mark.slow
@pytest.mark.parametrize("drafter", ["prompt-lookup", "sampler"])
def test_alone(drafter: str):
    check(drafter, 1, RULES[3:4], exact=False)


def temperature_after_top_p(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(logits, temperature, settings, vocabulary):
        filters = Filters(settings.top_k, settings.top_p, settings.min_p)
        kept = keep(scale(logits, jnp.ones_like(temperature), vocabulary), filters, vocabulary)
        return kept / temperature[:, None]

    monkeypatch.setattr(choosing, "scaled", wrong)


def residual_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks rejection: the replacement of a rejected token may be the rejected token again."""
    right_choose, right_commit = loop.choose, loop.commit

    def two_draws(logits, rows, state: DecodeState) -> Chosen:
        other = state.replace(sampling=state.sampling.replace(keys=state.sampling.keys + 1))
        fresh = right_choose(logits, rows, other).tokens
        chosen = right_choose(logits, rows, state)
        return chosen._replace(tokens=chosen.tokens + VOCAB * fresh)

    def accepted_by_the_first(tokens, draft_lens, predicted, tree):
        return VERIFY(tokens, draft_lens, predicted % VOCAB, tree)

    def replaced_by_the_second(state, planned: Planned, verdict: Verdict, chosen: Chosen):
        accepted = verdict.accepted
        places = jnp.arange(chosen.tokens.shape[1], dtype=jnp.int32)[None]
        rejected = (places == accepted[:, None]) & (accepted < planned.plan.draft_lens)[:, None]
        tokens = jnp.where(rejected, chosen.tokens // VOCAB, chosen.tokens % VOCAB)
        return right_commit(state, planned, verdict, chosen._replace(tokens=tokens))

    monkeypatch.setattr(loop, "choose", two_draws)
    monkeypatch.setattr(loop, "verify", accepted_by_the_first)
    monkeypatch.setattr(loop, "commit", replaced_by_the_second)


VERIFY = loop.verify


def bonus_from_the_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks the bonus token: the last draft token takes its place without verification."""
    right_commit = loop.commit

    def wrong(state, planned: Planned, verdict: Verdict, chosen: Chosen) -> DecodeState:
        accepted, guesses = verdict.accepted, planned.draft.tokens
        last = guesses.shape[1] - 1
        guess = jnp.take_along_axis(guesses, jnp.minimum(accepted, last)[:, None], axis=1)
        places = jnp.arange(chosen.tokens.shape[1], dtype=jnp.int32)[None]
        bonus = (places == accepted[:, None]) & (accepted == planned.plan.draft_lens - 1)[:, None]
        tokens = jnp.where(bonus, guess, chosen.tokens)
        return right_commit(state, planned, verdict, chosen._replace(tokens=tokens))

    monkeypatch.setattr(loop, "commit", wrong)


@pytest.mark.parametrize(
    "fault", [residual_forgotten, pytest.param(temperature_after_top_p, marks=pytest.mark.slow)]
)
def test_a_mistake_is_found(fault, monkeypatch: pytest.MonkeyPatch):
    fault(monkeypatch)
    rule = RULES[2]
    found = sample(make_engine(DRAFTERS["prompt-lookup"], 8), mixed((rule,), SEQUENCES // 2))
    assert p_value(found[rule], rule) < SIGNIFICANCE


@pytest.mark.parametrize(
    "drafter", ["sampler", pytest.param("prompt-lookup", marks=pytest.mark.slow)]
)
def test_a_bonus_from_the_draft_is_found(drafter: str, monkeypatch: pytest.MonkeyPatch):
    bonus_from_the_draft(monkeypatch)
    rule = RULES[0]
    found = sample(make_engine(DRAFTERS[drafter], 8), mixed((rule,), SEQUENCES // 2))
    assert p_value(found[rule], rule) < SIGNIFICANCE


def test_drafts_are_accepted_as_often_as_the_target_would_choose_them():
    """For a drafter that copies, this is p itself, the highest possible acceptance."""
    engine, rule = make_engine(Liar(guesses=(2, 3)), 1), RULES[0]
    jobs = (Job(seed, PROMPT, 3, choice=rule.choice(seed)) for seed in range(2000))
    results = list(engine.run(jobs))
    first_tried = sum(result.metrics.drafted_by_position[0] for result in results)
    first_right = sum(result.metrics.accepted_by_position[0] for result in results)
    share = sum(rule.next(())[t] * rule.next((t,))[2] for t in range(VOCAB))
    assert first_tried == 2000
    assert first_right / first_tried == pytest.approx(share, abs=3 * np.sqrt(share / 2000))
