import pytest

from emsjax.engine.metrics import RequestMetrics, RunTotals


def _metrics(steps=4, emitted=10, drafted=(4, 2), accepted=(3, 1), first=0.5):
    return RequestMetrics(
        target_steps=steps,
        drafted_tokens=sum(drafted),
        accepted_tokens=sum(accepted),
        emitted_tokens=emitted,
        drafted_by_position=drafted,
        accepted_by_position=accepted,
        time_to_first_token=first,
    )


def test_tokens_per_target_step_of_a_request():
    assert _metrics().tokens_per_target_step == 2.5
    assert _metrics(steps=0, emitted=0).tokens_per_target_step == 0.0


def test_totals_of_nothing():
    totals = RunTotals()
    assert totals.tokens_per_target_step == 0.0
    assert totals.mean_time_to_first_token == 0.0
    assert totals.acceptance_by_position == []


def test_totals_add_up_over_drafts_of_different_length():
    totals = RunTotals()
    totals.add(_metrics(first=0.5))
    totals.add(_metrics(steps=6, emitted=6, drafted=(4, 0, 2), accepted=(1, 0, 1), first=1.5))
    totals.add(_metrics(steps=2, emitted=2, drafted=(), accepted=(), first=1.0))
    assert (totals.requests, totals.emitted_tokens, totals.target_steps) == (3, 18, 12)
    assert totals.tokens_per_target_step == 1.5
    assert totals.acceptance_by_position == [0.5, 0.5, 0.5]
    assert totals.mean_time_to_first_token == pytest.approx(1.0)
    assert totals.first_token_max == 1.5


def test_a_position_never_drafted_has_no_acceptance():
    totals = RunTotals()
    totals.add(_metrics(drafted=(2, 0), accepted=(1, 0)))
    assert totals.acceptance_by_position == [0.5, None]
