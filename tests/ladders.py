"""Ladders of few rungs: each is a model to compile, which is most of what a test takes."""

from typing import Any

from emsjax.engine.ladder import Rung, make_ladder


def short_ladder(num_slots: int, draft_length: int, **options: Any) -> tuple[Rung, ...]:
    """Of each kind that `make_ladder` gives: plain, the fewest and most drafts, prompts."""
    ladder = make_ladder(num_slots, draft_length, **options)
    drafts = [rung for rung in ladder if 1 < rung.max_q_len <= draft_length + 1]
    return tuple(sorted({ladder[0], *drafts[:1], *drafts[-1:], ladder[-1]}))
