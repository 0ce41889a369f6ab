"""Experience: what the engine learns from accepted and rejected drafts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emsjax.engine.acceptance import Experience, expect, forget, learn, no_experience, predict
from emsjax.engine.draft import Draft
from tests.engine.states import int32s

B, K = 3, 4


def draft_of(said: float, source: int = 0) -> Draft:
    tokens = np.zeros((B, K), np.int32)
    confidence = np.full((B, K), said, np.float32)
    return Draft(tokens, int32s([K] * B), confidence, np.full((B, K), source, np.int32))


@functools.cache
def program():
    def step(experience: Experience, draft: Draft, draft_lens, accepted):
        place = jnp.arange(K, dtype=jnp.int32)[None]
        tried = (place <= accepted[:, None]) & (place < draft_lens[:, None])
        likely = predict(draft, experience)
        return likely, learn(experience, draft, likely, tried, place < accepted[:, None])

    return jax.jit(step)


def after(said: float, true: list[float], steps: int, source: int = 0) -> tuple:
    """Returns predictions and experience after steps in which tokens are right this often.

    Args:
      said: the confidence that the drafter reports for every token.
      true: how likely each slot's tokens are to be right.
      steps: number of steps.
      source: of the drafts.
    """
    rng, experience, likely = np.random.default_rng(0), no_experience(B), None
    seen = []
    for _ in range(steps):
        right = rng.random((B, K)) < np.asarray(true)[:, None]
        accepted = int32s(np.cumprod(right, axis=1).sum(axis=1))
        draft = draft_of(said, source)
        likely, experience = program()(experience, draft, int32s([K] * B), accepted)
        seen.append(np.asarray(likely)[:, 0])
    return np.mean(seen[steps // 2 :], axis=0), jax.device_get(experience)


def test_without_experience_predictions_equal_the_drafters_confidence():
    likely = np.asarray(predict(draft_of(0.8), no_experience(B)))
    np.testing.assert_allclose(likely, 0.8, atol=1e-6)
    unknown = Draft(np.zeros((B, K), np.int32), int32s([K] * B))
    assert (np.asarray(predict(unknown, no_experience(B))) == np.float32(0.6)).all()


@pytest.mark.parametrize("said", [0.5, 0.9])
def test_predictions_approach_each_slots_true_acceptance(said):
    true = [0.2, 0.5, 0.9]
    likely, _ = after(said, true, 300)
    # Forgetting pulls predictions towards the drafter's confidence, more so the further it is off.
    np.testing.assert_allclose(likely, true, atol=0.17)


def test_experience_with_one_source_leaves_the_other_alone():
    _, experience = after(0.9, [0.1] * B, 50, source=1)
    assert (experience.slots[:, 0] == 0).all()
    assert (experience.slots[:, 1] < -1).all()
    likely = np.asarray(predict(draft_of(0.9, source=0), experience))
    np.testing.assert_allclose(likely, 0.9, atol=1e-6)


def test_expectation_before_drafting_follows_past_acceptance():
    _, bad = after(0.5, [0.1] * B, 200, source=1)
    _, good = after(0.5, [0.9] * B, 200, source=1)
    assert np.asarray(expect(bad, 1, K)).max() < 0.35
    assert np.asarray(expect(good, 1, K)).min() > 0.7


def test_expectation_covers_all_drafted_tokens():
    """Tokens that were confident enough to be verified are better than average."""
    experience = no_experience(B)
    confidence = np.full((B, K), 0.1, np.float32)
    confidence[0] = 0.9
    draft = draft_of(0.5, 1)._replace(confidence=confidence)
    for _ in range(200):  # each confidence is as high as it should be
        right = int32s([K * (_ % 10 != 0), 0, 0])
        _, experience = program()(experience, draft, int32s([K, 0, 0]), right)
    expected = np.asarray(expect(experience, 1, K))
    # A draft with low confidence mostly ends with its first token.
    assert 0.4 < expected[1:].mean() < 0.7


def test_drafting_that_did_not_pay_gets_another_try():
    _, experience = after(0.5, [0.05] * B, 200, source=1)
    before = np.asarray(expect(experience, 1, K)).max()
    nothing = draft_of(0.5, 1)._replace(lens=int32s([0] * B))
    for _ in range(300):
        _, experience = program()(experience, nothing, int32s([0] * B), int32s([0] * B))
    assert np.asarray(expect(experience, 1, K)).max() > before + 0.1


def test_a_step_without_drafts_teaches_nothing():
    """As while drafting rests; the places of an empty draft may hold anything."""
    none, no_drafts = no_experience(B), int32s([0] * B)
    nothing = draft_of(0.9)._replace(lens=no_drafts)
    _, experience = program()(none, nothing, no_drafts, no_drafts)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), experience, none)


def test_a_new_request_forgets_its_slots_experience():
    _, experience = after(0.9, [0.1] * B, 50)
    fresh = jax.device_get(jax.jit(forget)(experience, int32s(1)))
    assert (fresh.slots[1] == 0).all()
    np.testing.assert_array_equal(fresh.slots[[0, 2]], experience.slots[[0, 2]])


def test_only_tried_tokens_count():
    """Tokens after the first wrong one and trimmed tokens do not count."""
    start, draft = no_experience(B), draft_of(0.5)
    _, one = program()(start, draft, int32s([1, 1, 0]), int32s([0, 0, 0]))
    _, many = program()(start, draft, int32s([4, 2, 0]), int32s([0, 0, 0]))
    np.testing.assert_array_equal(one.slots, many.slots)
    assert (np.asarray(one.slots)[2] == 0).all()
    assert (np.asarray(one.slots)[:2, 0] < 0).all()


def test_nothing_is_ever_certain():
    likely, experience = after(0.99, [1.0] * B, 2000)
    assert likely.max() < 1
    assert np.isfinite(experience.slots).all()
    hopeless, _ = after(0.01, [0.0] * B, 2000)
    assert hopeless.min() > 0


@pytest.mark.parametrize("slots", [1, 512])
def test_any_number_of_slots_learns_without_overshooting(slots: int):
    rng, experience = np.random.default_rng(0), no_experience(slots)
    draft = Draft(np.zeros((slots, K), np.int32), int32s([K] * slots))
    shared, expected = [], []
    for _ in range(400):
        right = rng.random((slots, K)) < 0.3
        accepted = int32s(np.cumprod(right, axis=1).sum(axis=1))
        _, experience = program()(experience, draft, int32s([K] * slots), accepted)
        shared.append(float(experience.shared[0]))
        expected.append(float(expect(experience, 0, K).mean()))
    assert max(np.abs(np.diff(shared))) < 0.4, "a step changes little"
    assert np.std(shared[200:]) < 0.2, "it comes to rest"
    # Forgetting pulls the expectation of a single slot towards the initial 0.6.
    assert np.mean(expected[200:]) == pytest.approx(0.3, abs=0.1)
