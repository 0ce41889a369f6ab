"""What a prompt shares with a text in a slot is copied, not read, and that changes nothing."""

import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emsjax.engine.engine import Engine
from emsjax.engine.job import Finished, Job
from emsjax.engine.prefixes import SHORTEST, WORTH_WAITING, Prefixes, Shared
from emsjax.engine.slots import Slots
from tests.engine.setup import make_engine, run_all, tiny_model

HEADER = [5 + n * n % 83 for n in range(60)]


@functools.cache
def engine(drafter: str = "prompt-lookup", num_slots: int = 2, *, exact: bool = False) -> Engine:
    return make_engine(tiny_model("llama"), drafter, num_slots, exact=exact)


@functools.cache
def alone(prompt: tuple[int, ...], max_tokens: int, *, exact: bool = False) -> tuple[int, ...]:
    """Returns the text of a prompt that shares nothing."""
    fresh = engine("none", exact=exact)
    (result,) = run_all(fresh, [Job(0, prompt, max_tokens)])
    assert result.metrics.cached_prompt_tokens == 0
    return result.token_ids


def decode(slots: Slots, *todo: Job) -> dict[object, Finished]:
    slots.submit(todo)
    ended: dict[object, Finished] = {}
    while not {job.key for job in todo} <= ended.keys():
        for each in slots.step(more=True).ended:
            assert isinstance(each, Finished)
            ended[each.job.key] = each
    return ended


@pytest.mark.parametrize(
    ("drafter", "exact"),
    [("prompt-lookup", True), ("prompt-lookup", False), ("itself", False), ("combined", False)],
)
def test_a_chat_reads_only_what_is_new(drafter: str, exact: bool):
    slots = Slots(engine(drafter, exact=exact))
    prompt = HEADER
    for turn in range(4):
        (result,) = decode(slots, Job(turn, prompt, 24)).values()
        assert result.token_ids == alone(tuple(prompt), 24, exact=exact)
        # All but the last token of the output before has its K/V, and the prompt's end is read.
        old = len(prompt) - 4 - 24 if turn else 0
        assert result.metrics.cached_prompt_tokens == (old + 24 - 1 if turn else 0)
        prompt = [*prompt, *result.token_ids, 7, 11 + turn, 13, 17]


def test_a_live_text_is_copied_and_so_is_one_that_has_ended():
    slots = Slots(engine(num_slots=3))
    long = Job("long", HEADER, 200)
    slots.submit([long])
    slots.step(more=True)
    jobs = [Job(n, [*HEADER, 30 + n, 8], 12) for n in range(5)]
    found = decode(slots, *jobs)
    assert slots.running == 1, "the long text was live all the time"
    for job in jobs:
        assert found[job.key].token_ids == alone(tuple(job.prompt), 12)
        assert found[job.key].metrics.cached_prompt_tokens == len(HEADER)
    while slots.running:
        ended = slots.step(more=True).ended
    assert [each.token_ids for each in ended] == [alone(tuple(HEADER), 200)]


def test_nothing_is_shared_if_that_is_turned_off():
    slots = Slots(engine(num_slots=3), share_prefixes=False)
    for number in range(2):
        job = Job(number, [*HEADER, 30 + number, 8], 12)
        found = decode(slots, job)[number]
        assert found.metrics.cached_prompt_tokens == 0
        assert found.token_ids == alone(tuple(job.prompt), 12)
    group = object()
    todo = [Job(number, [*HEADER, 40], 12, group=group) for number in range(2)]
    shared = [each.metrics.cached_prompt_tokens for each in decode(slots, *todo).values()]
    assert sorted(shared) == [0, len(HEADER)]


def test_a_draft_model_does_not_read_again_either():
    slots = Slots(engine("itself", num_slots=3))
    slots.submit([Job("live", HEADER, 200), Job("ended", HEADER[::-1], 4)])
    while slots.running != 1:
        slots.step(more=True)
    todo = [Job(n, [*text, 30, 8 + n], 24) for n, text in enumerate((HEADER, HEADER[::-1]))]
    slots.submit(todo)
    slots.fill()
    assert slots._state is not None
    assert sorted(slots._state.drafter.kv_lens.tolist())[:2] == [len(HEADER)] * 2
    ended = decode(slots, Job("last", [7], 4))
    while slots.running:
        ended |= {each.job.key: each for each in slots.step(more=True).ended}
    for job in todo:
        assert ended[job.key].token_ids == alone(tuple(job.prompt), 24)
        metrics = ended[job.key].metrics
        assert metrics.accepted_tokens > 0.9 * metrics.drafted_tokens > 0


def test_prompts_that_come_together_read_a_long_beginning_once():
    slots = Slots(engine(num_slots=3))
    header = [3 + n * n % 83 for n in range(WORTH_WAITING + 20)]
    todo = [Job(n, [*header, 90 + n, 9], 12) for n in range(4)]
    found = decode(slots, *todo)
    read = [len(job.prompt) - found[job.key].metrics.cached_prompt_tokens for job in todo]
    assert read == [len(header) + 2, 2, 2, 2]
    for job in todo:
        assert found[job.key].token_ids == alone(tuple(job.prompt), 12)
    slots.submit([Job("live", [*header[::-1], 9], 200)])
    slots.step(more=True)
    slots.submit([Job("other", [8, *header], 12)])
    slots.fill()
    assert slots.running == 2, "a prompt that has nothing to wait for does not"


def test_the_last_token_of_a_prompt_is_always_read():
    """A prompt that is there already, or that a longer text begins with, has something to read."""
    slots = Slots(engine())
    for key, prompt in enumerate((HEADER, HEADER, HEADER[:40])):
        (result,) = decode(slots, Job(key, prompt, 12)).values()
        assert result.token_ids == alone(tuple(prompt), 12)
        assert result.metrics.cached_prompt_tokens == (len(prompt) - 1 if key else 0)


def test_an_aligned_cache_shares_prompts_only():
    vanilla = make_engine(tiny_model("llama"), "prompt-lookup", 2, method="vanilla")
    slots = Slots(vanilla)
    (first,) = decode(slots, Job(0, HEADER, 24)).values()
    prompt = [*HEADER, *first.token_ids, 9]
    (second,) = decode(slots, Job(1, prompt, 24)).values()
    assert second.metrics.cached_prompt_tokens == len(HEADER)
    assert second.token_ids == alone(tuple(prompt), 24)


def test_slots_that_only_keep_texts_outlive_other_jobs():
    """Three headers come in turn through one slot; only with more slots is each read once."""
    headers = [[3 + (n * step) % 89 for n in range(40)] for step in (7, 11, 13)]
    todo = [Job(n, [*headers[n % 3], 40 + n, 9], 6) for n in range(9)]
    for spare, read in ((0, 9), (2, 3)):
        slots, found = Slots(engine(num_slots=1 + spare), most_running=1), {}
        for job in todo:
            found |= decode(slots, job)
        assert [found[n].token_ids for n in range(9)] == [alone(tuple(j.prompt), 6) for j in todo]
        assert sum(not each.metrics.cached_prompt_tokens for each in found.values()) == read
    slots = Slots(engine(num_slots=4), most_running=1)
    slots.submit(todo)
    while slots.busy:
        slots.step(more=True)
        assert slots.running <= 1


def test_a_run_starts_with_nothing():
    """Texts of an earlier run are not searched, so that a run does not depend on it."""
    for _ in range(2):
        (result,) = run_all(engine(), [Job(0, HEADER, 4)])
        assert result.metrics.cached_prompt_tokens == 0


@given(st.lists(st.integers(0, 1), max_size=80), st.lists(st.integers(0, 1), min_size=1))
def test_the_longest_beginning_is_found(text: list[int], more: list[int]):
    prefixes = Prefixes(2)
    prefixes.admit(1, text, None)
    prefixes.read(1, len(text))
    prompt = [*text[:60], *more]
    common = next(
        (n for n, (a, b) in enumerate(zip(text, prompt, strict=False)) if a != b),
        min(len(text), len(prompt)),
    )
    length = min(common, len(prompt) - 1)
    wanted = Shared(1, length) if length >= SHORTEST else None
    assert prefixes.longest(prompt) == wanted
    prefixes.drop(1)
    assert prefixes.longest(prompt) is None


def test_the_text_that_is_missed_least_makes_room():
    prefixes = Prefixes(3)
    for slot in range(3):
        prefixes.admit(slot, [slot] * 50, None)
        prefixes.finish(slot, [4] * 41, 90)
    every, new = [0, 1, 2], [7] * 50
    assert prefixes.place(every, new, None) == 0, "the oldest"
    continued = [*[1] * 50, *[4] * 41, 9]
    assert prefixes.longest(continued) == Shared(1, 90)
    assert prefixes.place(every, continued, Shared(1, 90)) == 1
    branched = [*[0] * 50, 8, 8]
    shared = prefixes.longest(branched)
    assert shared == Shared(0, 50)
    assert prefixes.place(every, branched, shared) == 1, "the oldest other"
    assert prefixes.place([0], branched, shared) == 0
    prefixes.admit(1, branched, shared)
    prefixes.finish(1, [6], 52)
    assert prefixes.place(every, new, None) == 1, "all but two tokens of it are in slot 0"
    assert prefixes.place([0, 2], new, None) == 2, "slot 0 was of use later"
