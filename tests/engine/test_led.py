"""An engine that is led makes the calls of the leading one, and has the same state after each."""

import pickle
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from emsjax.costs import measure
from emsjax.engine import grammar_table, led
from emsjax.engine import slots as slots_module
from emsjax.engine.devices import Devices
from emsjax.engine.led import LeadingEngine, follow
from emsjax.engine.slots import Slots
from emsjax.engine.stream import decode_stream
from emsjax.errors import UserError
from emsjax.sampling.automaton import Vocabulary
from emsjax.sampling.choice import make_choice
from emsjax.shapes import SHARDS
from tests.engine.setup import jobs, make_engine, run_all, tiny_model
from tests.ladders import two_rungs
from tests.sampling.languages import automaton_of
from tests.tiny import VOCAB_SIZE

MODEL = "llama"
# Tokens 3, 4 and 5 are the letters a, b and c; no other has a text.
LETTERS = Vocabulary([b"", b"", b"", b"a", b"b", b"c", *[b""] * (VOCAB_SIZE - 6)])


class Told:
    """Takes down what the leader says, as it would travel."""

    checks = True

    def __init__(self):
        self.said, self.digests = [], []

    def devices_run(self):
        return nullcontext()

    def say(self, *message):
        self.said.append(pickle.dumps(message))

    def messages(self):
        return map(pickle.loads, self.said)

    def agree(self, mine, otherwise):
        del otherwise
        self.digests.append(mine)


@pytest.fixture
def make():
    """Makes engines with devices of several hosts, of which there is one."""
    devices = Devices(Mesh(np.asarray(jax.devices()[:1]), (SHARDS,)))
    return partial(
        make_engine, tiny_model(MODEL), "prompt-lookup", 3, devices=devices, make=two_rungs
    )


def mixed(count):
    """Jobs of which every other one is sampled."""
    return [
        replace(job, choice=make_choice(seed=n, temperature=1.0)) if n % 2 else job
        for n, job in enumerate(jobs(count))
    ]


def test_the_others_have_the_same_state_after_every_call(make):
    told, again = Told(), Told()
    leading = make(costs=0.5, kind=partial(LeadingEngine, hosts=told))
    leading.use_token_classes(np.arange(VOCAB_SIZE) % 3)
    run_all(leading, mixed(7))
    run_all(leading, jobs(2))  # takes the state of the first run
    again.said = told.said
    follow(make(), again)
    assert len(told.digests) > 10
    assert again.digests == told.digests
    # Otherwise the others would begin to compile when the devices of the first wait for theirs.
    assert "ready_for" in [message[0] for message in told.messages()]


def test_measured_costs_reach_the_others(make, monkeypatch):
    monkeypatch.setattr(measure, "MOST_TURNS", 4)
    monkeypatch.setattr(measure, "MOST_STEPS", 1)
    told, again = Told(), Told()
    leading = make(costs=0.5, kind=partial(LeadingEngine, hosts=told))
    costs = measure.measure_costs(leading).costs
    leading.use_costs(costs)
    run_all(leading, jobs(2))
    again.said = told.said
    follower = make(costs=0.5)
    follow(follower, again)
    assert again.digests == told.digests
    np.testing.assert_array_equal(follower.costs.rungs, costs.rungs)


def test_a_cancelled_job_is_released_everywhere(make, monkeypatch):
    monkeypatch.setattr(slots_module, "STEPS_PER_CALL", 1)
    told, again = Told(), Told()
    leading = make(kind=partial(LeadingEngine, hosts=told))
    slots, todo = Slots(leading), jobs(4)
    slots.submit(todo)
    slots.step()
    slots.cancel(todo[1:2])  # the longest
    while slots.busy:
        slots.step()
    again.said = told.said
    follow(make(), again)
    assert again.digests == told.digests
    assert "release" in [message[0] for message in told.messages()]


def in_language(job, texts):
    """Returns a job whose output is one of some texts of tokens 3, 4 and 5."""
    grammar = automaton_of(texts, LETTERS)
    choice = make_choice(seed=job.key, temperature=1.0, in_grammar=True)
    return replace(job, grammar=grammar, choice=choice, max_tokens=8)


def test_the_others_write_grammars_to_the_same_rows(make, monkeypatch):
    """There is room for one grammar, so that the second replaces the first."""
    monkeypatch.setattr(grammar_table, "MAX_GRAMMAR_STATES", grammar_table.BLOCK_ROWS)
    told, again = Told(), Told()
    leading = make(kind=partial(LeadingEngine, hosts=told))
    todo = jobs(4)
    first = in_language(todo[0], frozenset({b"abc", b"acb"}))
    todo[2] = replace(first, key=2)
    todo[3] = in_language(todo[3], frozenset({b"ba"}))
    ended = run_all(leading, [first, *todo[1:]])
    assert {ended[n].token_ids[:-1] for n in (0, 2)} <= {(3, 4, 5), (3, 5, 4)}
    assert ended[3].token_ids[:-1] == (4, 3)
    again.said = told.said
    follow(make(), again)
    assert again.digests == told.digests
    # What a grammar needs for a step, not the vocabulary, travels with each job.
    assert [message[0] for message in told.messages()].count("use_vocabulary") == 1


def test_the_others_score_the_same_prompts(make, monkeypatch):
    told, again = Told(), Told()
    leading = make(kind=partial(LeadingEngine, hosts=told))
    run_all(leading, [replace(job, scores_prompt=True) for job in jobs(2)])
    again.said, scored = told.said, []
    follower = make()
    monkeypatch.setattr(follower._scorer, "score", lambda _params, prompt: scored.append(prompt))
    follow(follower, again)
    assert again.digests == told.digests
    assert scored == [tuple(job.prompt) for job in jobs(2)]


def test_a_state_that_differs_is_seen(make):
    told, again = Told(), Told()
    leading = make(kind=partial(LeadingEngine, hosts=told))
    run_all(leading, jobs(3))
    again.said = [
        pickle.dumps(("advance", 1, False)) if message[0] == "advance" else said
        for message, said in zip(told.messages(), told.said, strict=True)
    ]
    follow(make(), again)
    assert again.digests != told.digests


def test_whatever_the_slots_do_to_a_state_is_led():
    """What they ask besides is the same on all hosts, or the leader's own."""
    asked = {"cache_is_text", "read_again", "grammar_places"}
    called = {name for name in vars(slots_module.Device) if not name.startswith("_")}
    told_before = {"use_costs", "use_token_classes"}
    led_calls = vars(led)["_CALLS"].keys() - told_before
    assert called - asked <= led_calls <= vars(LeadingEngine).keys()


def test_two_runs_at_a_time_are_refused(make):
    leading = make(kind=partial(LeadingEngine, hosts=Told()))
    first = decode_stream(Slots(leading), jobs(5))
    next(first)
    run_all(leading, jobs(2))
    with pytest.raises(UserError, match=r"^a model on several hosts has one run at a time; "):
        list(first)
