"""Logits that are not numbers end the request that they belong to, and no other."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from emsjax.drafters import DraftModel
from emsjax.engine.draft import Draft
from emsjax.engine.drafter import Stateless
from emsjax.engine.job import Job
from emsjax.sampling.choice import make_choice
from tests.engine.setup import make_engine, run_all, tiny_model
from tests.ladders import two_rungs

NAN, INF = float("nan"), float("inf")
PROMPTS = [[5, 6, 7] * 12, [9, 8] * 20, [11], [30, 31, 32, 33] * 3]


@functools.cache
def broken_model(token: int, value: float = NAN) -> Any:
    """Returns a tiny model that cannot read one token: its embedding holds `value`."""
    graphdef, weights = nnx.split(tiny_model("llama"))
    model = nnx.merge(graphdef, jax.tree.map(jnp.copy, weights))
    model.embedder.tokens[...] = model.embedder.tokens[...].at[token].set(value)
    return model


@functools.cache
def texts() -> list[tuple[int, ...]]:
    """Returns the texts of `PROMPTS` under the sound model, each alone."""
    plain = make_engine(tiny_model("llama"), "none", 1)
    return [r.token_ids for r in run_all(plain, todo())]


def todo(**options: Any) -> list[Job]:
    return [Job(n, prompt, 24, **options) for n, prompt in enumerate(PROMPTS)]


def unread_token() -> int:
    """Returns a token that none of the texts and prompts holds."""
    used = {token for text in (*texts(), *PROMPTS) for token in text}
    return min(set(range(3, 101)) - used)


def late_token() -> int:
    """Returns a token of the first text that does not come early in it."""
    first = texts()[0]
    return first[next(place for place in range(6, 20) if first[place] not in first[:place])]


def until(text: tuple[int, ...], token: int) -> tuple[int, ...]:
    """Returns a text up to the first time that the model reads `token`."""
    return text[: text.index(token) + 1] if token in text[:-1] else text


@functools.cache
def engine_of(token: int, value: float = NAN, *, exact: bool = False) -> Any:
    """Returns an engine whose model cannot read one token, which records traces."""
    return make_engine(broken_model(token, value), "prompt-lookup", 3, exact=exact, trace=True)


@pytest.mark.parametrize(("value", "exact"), [(NAN, False), (NAN, True), (INF, True)])
def test_a_prompt_that_the_model_cannot_read(value: float, exact: bool):
    token = unread_token()
    engine = engine_of(token, value, exact=exact)
    bad = [Job(n, [5, token, *[6, 7] * n], 24) for n in range(10, 14)]
    mixed = [job for pair in zip(bad, todo(), strict=True) for job in pair]
    results = {r.job.key: r for r in engine.run(mixed)}
    assert [results[n].token_ids for n in range(len(PROMPTS))] == texts()
    assert not any(results[n].failed for n in range(len(PROMPTS)))
    for job in bad:
        result = results[job.key]
        assert (result.failed, result.token_ids, result.stopped) == (True, (), False)
        assert result.metrics.target_steps == result.metrics.drafted_tokens == 0


@pytest.mark.parametrize("exact", [False, True])
def test_a_text_ends_after_the_token_that_the_model_cannot_read(exact: bool):
    token = late_token()
    engine = engine_of(token, exact=exact)
    for result, text in zip(run_all(engine, todo()), texts(), strict=True):
        assert result.token_ids == until(text, token)
        assert result.failed == (token in text[:-1])
        metrics, steps = result.metrics, result.trace.steps
        assert metrics.emitted_tokens == len(result.token_ids)
        assert metrics.target_steps <= metrics.emitted_tokens
        assert len(steps) == metrics.target_steps
        assert sum(step.emitted for step in steps) == metrics.emitted_tokens
        assert sum(len(step.drafted) for step in steps) == metrics.drafted_tokens
        assert sum(step.accepted for step in steps) == metrics.accepted_tokens


@dataclasses.dataclass(frozen=True)
class Wrong(Stateless):
    """Drafts one token again and again."""

    token: int
    draft_length: int = 4
    hidden_size: int = 0
    hidden_layers: tuple[int, ...] = ()

    def propose(self, state: Any, weights: Any, worth: Any) -> tuple[Draft, tuple[()]]:
        """Drafts for every slot."""
        del weights, worth
        lens = jnp.where(state.live, self.draft_length, 0)
        tokens = jnp.full((lens.shape[0], self.draft_length), self.token, jnp.int32)
        return Draft(tokens, lens), state.drafter


def test_a_rejected_draft_that_the_model_cannot_read_is_harmless():
    token = unread_token()
    engine = make_engine(broken_model(token), Wrong(token), 2, exact=True)
    results = run_all(engine, todo())
    assert [r.token_ids for r in results] == texts()
    assert sum(r.metrics.drafted_tokens for r in results) > 0


def test_a_drafter_whose_logits_are_not_numbers_is_only_slow():
    """The shared experience stays a number: otherwise nobody's drafts would be verified again."""
    token = texts()[0][3]
    graphdef, weights = nnx.split(broken_model(token))
    merge = functools.partial(nnx.merge, graphdef)
    model = tiny_model("llama")
    drafter = DraftModel("broken", weights, merge, model.vocab_size, 4, prefill_chunk=32)
    engine = make_engine(model, drafter, 2, costs=1.0, make=two_rungs)
    assert [r.token_ids for r in run_all(engine, todo())] == texts()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(engine._idle.experience))


def test_samples_fail_too():
    token = unread_token()
    kinds = {"temperature": 1.0, "top_p": 0.9}, {"logprobs": True}, {"repetition_penalty": 1.2}
    choices = [make_choice(**kind) for kind in (*kinds, {"min_len": 9})]
    bad = [Job(n, [5, token], 8, (2,), choice) for n, choice in enumerate(choices, start=10)]
    results = {
        r.job.key: r for r in engine_of(token, exact=True).run([*bad[:2], *todo(), *bad[2:]])
    }
    assert [results[n].token_ids for n in range(len(PROMPTS))] == texts()
    assert all(results[job.key].failed and not results[job.key].token_ids for job in bad)


def test_minus_infinity_bans_tokens_and_is_no_fault():
    bias = np.full(101, -np.inf, np.float32)
    bias[[40, 41]] = 0
    choice = make_choice(bias=bias)
    (result,) = run_all(engine_of(unread_token(), exact=True), [Job(0, [5, 6], 8, choice=choice)])
    assert not result.failed
    assert set(result.token_ids) <= {40, 41}


def test_no_token_left_is_a_fault():
    choice = make_choice(bias=np.full(101, -np.inf, np.float32))
    (result,) = run_all(engine_of(unread_token(), exact=True), [Job(0, [5, 6], 8, choice=choice)])
    assert (result.failed, result.token_ids) == (True, ())


def test_a_group_whose_prompt_cannot_be_read_fails_whole():
    token, group = unread_token(), object()
    bad = [Job(n, [5, token], 8, group=group) for n in range(10, 14)]
    results = {r.job.key: r for r in engine_of(token, exact=True).run([*bad, *todo()])}
    assert all(results[job.key].failed for job in bad)
    assert [results[n].token_ids for n in range(len(PROMPTS))] == texts()


def test_a_watch_that_ends_the_job_before_the_fault_wins():
    """The host looks every few steps, so the device may have failed by then."""
    token = late_token()
    seen: list[int] = []

    def watch(new: list[int]) -> int | None:
        start, kept = len(seen), texts()[0].index(token)
        seen.extend(new)
        return kept - start if len(seen) > kept else None

    engine = engine_of(token, exact=True)
    (result,) = [r for r in engine.run([Job(0, PROMPTS[0], 24, watch=watch)]) if r is not None]
    assert (result.cut, result.failed) == (True, False)
    assert result.token_ids == texts()[0][: texts()[0].index(token)]


def test_a_slot_is_as_good_as_new_after_a_fault():
    token = unread_token()
    bad = [Job(n, [5, token, 6] * 30, 8) for n in range(10, 13)]
    results = {r.job.key: r for r in engine_of(token, exact=True).run([*bad, *todo()])}
    assert all(results[job.key].failed for job in bad)
    assert [results[n].token_ids for n in range(len(PROMPTS))] == texts()
