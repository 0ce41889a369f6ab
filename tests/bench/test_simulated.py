"""Simulated acceptance: the text is a script, and a table says how much of each draft is right."""

import jax
import numpy as np
import pytest

from emsjax.bench.contenders import Contender, Spec
from emsjax.bench.decoding import Run
from emsjax.bench.parts import watched
from emsjax.bench.recording import Recorder
from emsjax.bench.simulated import (
    Acceptance,
    Simulated,
    forced_acceptance,
    read_acceptance,
    script,
    scripted_choice,
    write_acceptance,
)
from emsjax.bench.target import Target
from emsjax.drafters import NoDrafter, PromptLookup
from emsjax.engine.engine import Engine
from emsjax.engine.job import Job
from emsjax.engine.policy import POLICIES
from emsjax.errors import UserError
from emsjax.limits import DRAFT_LENGTH, MAX_DRAFT_LENGTH
from tests.engine.setup import tiny_model
from tests.ladders import short_ladder
from tests.tiny import VOCAB_SIZE

MODEL = tiny_model("llama3")
SLOTS, TOKENS, LENGTH = 3, 40, 4
PROMPTS = [(0, 5, 6), (1, 9), (2, 3, 4, 5, 6, 7)]
TABLE = Acceptance(
    np.asarray([[4, 2, 0, 3, 1], [1, 4, 4, 4, 0], [0, 0, 2, 4, 3]], np.int32),
    np.asarray([[4, 0, 0, 2, 1], [1, 3, 4, 0, 0], [0, 0, 1, 4, 2]], np.int32),
    np.full((3, 5), 0.5, np.float32),
)


def contender(drafter, method="ems", **options) -> Contender:
    engine = Engine(
        MODEL,
        drafter,
        short_ladder(SLOTS, drafter.draft_length, prefill_chunk=64),
        num_slots=SLOTS,
        capacity=256,
        policy=POLICIES[method],
        **options,
    )
    return Contender(Spec(method, "any"), engine, 0.0, None)


def jobs() -> list[Job]:
    return [Job(n, prompt, TOKENS) for n, prompt in enumerate(PROMPTS)]


def simulate(table: Acceptance, method: str = "ems") -> Run:
    drafter = Simulated(table, VOCAB_SIZE, LENGTH)
    one = contender(drafter, method, choose=scripted_choice(VOCAB_SIZE))
    cache, _ = one.prefill(jobs())
    return one.decode(cache, jobs())[1]


def walk(accepted: np.ndarray, end: int) -> list[int]:
    """The places before `end` at which steps begin, if drafts are accepted as in a row."""
    places = [0]
    while places[-1] < end:
        places.append(places[-1] + int(accepted[places[-1] % len(accepted)]) + 1)
    return places[:-1]


@pytest.mark.parametrize("method", ["ems", "vanilla", "unpad-kv", "unpad-input"])
def test_each_sample_walks_through_its_row(method: str):
    run = simulate(TABLE, method)
    assert run.counts["target_steps"] == sum(len(walk(row, TOKENS)) for row in TABLE.accepted)
    for number, (prompt, text) in enumerate(zip(PROMPTS, run.tokens, strict=True)):
        places = np.arange(len(prompt), len(prompt) + TOKENS)
        assert list(text) == script(np.int32(number), places, VOCAB_SIZE).tolist()


@pytest.mark.parametrize(("rate", "tokens_per_step"), [("0", 1.0), ("1", 1.0 + LENGTH)])
def test_rates_of_zero_and_one(rate: str, tokens_per_step: float):
    run = simulate(forced_acceptance(rate).acceptance)
    assert SLOTS * TOKENS / run.counts["target_steps"] == tokens_per_step


def test_the_rate_is_the_probability_of_each_token_after_right_ones():
    table = forced_acceptance("0.7").acceptance
    counts = np.bincount(np.minimum(table.accepted, 7).ravel()) / table.accepted.size
    expected = [0.3 * 0.7**n for n in range(7)] + [0.7**7]
    assert np.abs(counts - expected).max() < 0.01  # Four standard errors of 32,768 draws.


def test_the_draft_length_is_the_recorded_or_the_default_one(tmp_path):
    long = Acceptance(np.full((1, 3), MAX_DRAFT_LENGTH), np.ones((1, 3)), np.ones((1, 3)))
    write_acceptance([Acceptance(*(field[0] for field in long))], tmp_path / "long.jsonl")
    assert forced_acceptance(str(tmp_path / "long.jsonl")).draft_length == MAX_DRAFT_LENGTH
    assert forced_acceptance("0.5").draft_length == DRAFT_LENGTH


def test_steps_are_timed_with_a_draft_at_every_place():
    table = Simulated(TABLE, VOCAB_SIZE, LENGTH).always().table
    assert (table.drafted == LENGTH).all()
    assert (table.accepted == TABLE.accepted).all()


def test_the_target_still_computes_its_logits():
    """Without them a simulated step would cost less than a real one."""
    flops = [
        contender(NoDrafter(), **options).engine.lower().compile().cost_analysis()["flops"]
        for options in ({}, {"choose": scripted_choice(VOCAB_SIZE)})
    ]
    assert flops[1] >= flops[0]


def test_what_was_recorded_is_what_happened(tmp_path):
    recorder, texts = Recorder(), [(5, 6, 7) * 8, (9, 8) * 9, (3, 4, 5, 6) * 5]
    real = contender(PromptLookup(LENGTH, 3, 1))
    target = Target(MODEL, "tiny", (), 512)
    some = [Job(n, prompt, TOKENS) for n, prompt in enumerate(texts)]
    run = watched(real, target, recorder.see).decode(real.prefill(some)[0], some)[1]
    write_acceptance(recorder.samples, tmp_path / "acceptance.jsonl")
    table = read_acceptance(tmp_path / "acceptance.jsonl")
    assert table.drafted.shape[0] == SLOTS
    assert forced_acceptance(str(tmp_path / "acceptance.jsonl")).draft_length == table.drafted.max()
    assert run.counts["accepted"].sum() > 0
    # The last step of a text is not recorded, because the accepted length of its draft is unknown.
    walks = [walk(sample.accepted, len(sample.accepted)) for sample in recorder.samples]
    assert sum(map(len, walks)) == run.counts["target_steps"] - SLOTS
    recorded = sum(int(s.accepted[w].sum()) for s, w in zip(recorder.samples, walks, strict=True))
    assert 0 <= run.counts["accepted"].sum() - recorded <= SLOTS * LENGTH


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("1.5", "1.5 is out of range"),
        ("-0.1", "-0.1 is out of range"),
        ("nan", "nan is out of range"),
        ("there/is/none", "'there/is/none' cannot be read"),
    ],
)
def test_impossible_acceptance(wanted: str, message: str):
    with pytest.raises(UserError, match=message):
        forced_acceptance(wanted)


@pytest.mark.parametrize(
    "text",
    ['{"drafted": [1]}', "{", "[]", "", '{"drafted":[1],"accepted":[2],"confidence":[0.5]}'],
)
def test_a_damaged_recording(text: str, tmp_path):
    file = tmp_path / "acceptance.jsonl"
    file.write_text(text)
    with pytest.raises(UserError, match=r"acceptance.jsonl"):
        read_acceptance(file)


def test_the_script_differs_between_samples_and_places():
    tokens = jax.vmap(lambda s: script(s, np.arange(64), 49152))(np.arange(64))
    assert len(np.unique(np.asarray(tokens))) > 0.9 * 64 * 64
