"""Recorded drafts are judged by hand, and decoded again as a hand would."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.calibration import outcomes_of, scores
from benchmarks.drafts import Recorded, read, write
from benchmarks.replayed import Simulation, Texts, rate
from benchmarks.simulation import PLACES, Way
from emsjax.engine.ladder import make_ladder

TEXTS, LENGTH, GUESSES, VOCAB = 5, 40, 9, 30


def recorded(seed: int = 0) -> Recorded:
    """Makes random texts, with random drafts of which some guesses are right."""
    rng = np.random.default_rng(seed)
    texts = rng.integers(0, VOCAB, (TEXTS, LENGTH)).astype(np.int32)
    prompt_lens = rng.integers(5, 10, TEXTS).astype(np.int32)
    lens = rng.integers(30, LENGTH + 1, TEXTS).astype(np.int32)
    shape = TEXTS, int((lens - prompt_lens).max()), GUESSES
    forest = np.stack([rng.integers(-1, max(j, 1), shape[:2]) for j in range(GUESSES)], axis=2)
    forest[..., 0] = -1
    drafts = {}
    for name, parents in {
        "chain": np.broadcast_to(np.arange(GUESSES) - 1, shape),
        "tree": forest,
    }.items():
        tokens = rng.integers(VOCAB, 2 * VOCAB, shape).astype(np.int32)
        for (n, p, j), lucky in np.ndenumerate(rng.random(shape) < 0.6):
            at = prompt_lens[n] + p + len(path(parents[n, p], j)) - 1
            siblings = tokens[n, p][:j][parents[n, p, :j] == parents[n, p, j]]
            if lucky and at < LENGTH and texts[n, at] not in siblings:
                tokens[n, p, j] = texts[n, at]
        drafts[name] = {
            "tokens": tokens,
            "confidence": rng.uniform(0.3, 0.8, shape).astype(np.float32),
            "source": np.ones(shape, np.int8),
            "parents": parents.astype(np.int8),
            "lens": np.full(shape[:2], GUESSES, np.int8),
        }
    return Recorded(texts, prompt_lens, lens, np.asarray(["all"] * TEXTS), drafts)


def path(parents: np.ndarray, guess: int) -> list[int]:
    """Returns the guesses from the first one of a path to this one."""
    above = int(parents[guess])
    return [*(path(parents, above) if above >= 0 else []), guess]


def is_right(given: Recorded, name: str, text: int, place: int, guess: int) -> bool:
    draft = given.drafts[name]
    along = path(draft["parents"][text, place], guess)
    at = given.prompt_lens[text] + place + np.arange(len(along))
    if at[-1] >= given.lens[text]:
        return False
    return bool((given.texts[text, at] == draft["tokens"][text, place, along]).all())


@pytest.mark.parametrize("name", ["chain", "tree"])
def test_a_guess_is_right_if_the_text_has_its_whole_path(name: str):
    given = recorded()
    right, tried = given.right(name), given.tried(name)
    assert 50 < right.sum() < tried.sum() < right.size
    for index in np.ndindex(right.shape):
        assert right[index] == is_right(given, name, *index), index
        above = int(given.drafts[name]["parents"][index])
        assert tried[index] == (above < 0 or right[(*index[:2], above)])


def test_a_file_holds_all_that_was_recorded(tmp_path: Path):
    given, file = recorded(), tmp_path / "drafts.npz"
    write(given, file)
    again = read(file)
    for name, draft in given.drafts.items():
        for part, values in draft.items():
            np.testing.assert_array_equal(again.drafts[name][part], values)
    for part in Recorded._fields[:-1]:
        np.testing.assert_array_equal(getattr(again, part), getattr(given, part))


def accepted_by_hand(given: Recorded, name: str, text: int, length: int) -> list[int]:
    """Returns the accepted tokens of each step, if whole drafts of so many guesses are verified."""
    place, found, left = 1, [], int(given.lens[text] - given.prompt_lens[text])
    while place < left:
        parents = given.drafts[name]["parents"][text, place]
        hits = [g for g in range(length) if is_right(given, name, text, place, g)]
        found.append(max((len(path(parents, g)) for g in hits), default=0))
        place += found[-1] + 1
    return found


def emitted_by_hand(given: Recorded, name: str, text: int, length: int) -> list[int]:
    """Returns the tokens of each step; after the last accepted guess there may be none left."""
    found, left = [], int(given.lens[text] - given.prompt_lens[text]) - 1
    for accepted in accepted_by_hand(given, name, text, length):
        found.append(min(accepted + 1, left))
        left -= found[-1]
    return found


def test_scores_are_of_the_guesses_that_whole_drafts_show():
    given = recorded()
    found = outcomes_of(given, "chain", 4)
    by_hand = [accepted_by_hand(given, "chain", text, 4) for text in range(TEXTS)]
    assert found.right.sum() == sum(map(sum, by_hand))
    assert scores(found)["accepted"] == pytest.approx(found.right.mean())
    # Said is what was recorded; experience has changed the prediction.
    assert ((found.said >= 0.3) & (found.said <= 0.8)).all()
    assert scores(found)["said"]["brier"] > scores(found)["predicted"]["brier"]


@pytest.mark.slow
def test_a_simulation_takes_the_steps_that_a_hand_takes():
    given = recorded()
    texts, ladder = Texts.of(given), make_ladder(1, 4, prefill_chunk=64)
    way = Way("model", False, 4, False)
    steps = Simulation(texts, way.make(texts), ladder, 1).run(None)
    by_hand = [emitted_by_hand(given, "chain", text, 4) for text in range(TEXTS)]
    assert steps.emitted.tolist() == [n for of_text in by_hand for n in of_text]
    assert (steps.passes == 4).all()


@pytest.mark.slow
def test_a_planned_simulation_is_the_same_every_time():
    texts, length, size = Texts.of(recorded()), 7, 2
    ladder = make_ladder(size, length, prefill_chunk=64)
    way = Way("both", True, length, True)
    simulation = Simulation(texts, way.make(texts), ladder, size)
    costs = PLACES[1].costs(ladder, size, length, size)
    first, again = simulation.run(costs), simulation.run(costs)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert rate(first, costs) > 0
    assert first.verified.sum() > 0
