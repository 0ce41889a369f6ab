"""Ladders with few rungs. Each rung is a model to compile, which is most of a test's time."""

from typing import Any

from emsjax.engine.ladder import Rung, ladder_for, make_ladder


def short_ladder(num_slots: int, draft_length: int, **options: Any) -> tuple[Rung, ...]:
    """Returns one rung of each kind: plain, fewest draft tokens, most draft tokens, prompts."""
    return _shortened(make_ladder(num_slots, draft_length, **options), draft_length)


def short_ladder_for(
    platform: str, num_slots: int, draft_length: int, *, exact: bool = False
) -> tuple[Rung, ...]:
    """Returns one rung of each kind of `ladder_for`."""
    return _shortened(ladder_for(platform, num_slots, draft_length, exact=exact), draft_length)


def _shortened(ladder: tuple[Rung, ...], draft_length: int) -> tuple[Rung, ...]:
    drafts = [rung for rung in ladder if 1 < rung.max_q_len <= draft_length + 1]
    return tuple(sorted({ladder[0], *drafts[:1], *drafts[-1:], ladder[-1]}))


def two_rungs_for(
    platform: str, num_slots: int, draft_length: int, *, exact: bool = False
) -> tuple[Rung, ...]:
    """Returns the last two rungs of `short_ladder_for`."""
    return short_ladder_for(platform, num_slots, draft_length, exact=exact)[-2:]


def two_rungs(num_slots: int, draft_length: int, **options: Any) -> tuple[Rung, ...]:
    """Returns the rung of most draft tokens, or the plain one, and that of most prompt tokens."""
    return short_ladder(num_slots, draft_length, **options)[-2:]


def one_rung(num_slots: int, draft_length: int, **options: Any) -> tuple[Rung, ...]:
    """Returns the plain rung, for programs that are only compiled."""
    return short_ladder(num_slots, draft_length, **options)[:1]
