"""The figure shows what the loop does today, and the loop does what the paper says."""

import numpy as np

from docs.figures import draw
from docs.figures.worked_example import Seen, run


def padding(steps: list[Seen]) -> tuple[list[int], list[int]]:
    """Returns the rows of padding and the new holes of each step."""
    holes = np.diff([0, *(int(step.holes.sum()) for step in steps)])
    return [int(step.plan.pad_lens.sum()) for step in steps], holes.tolist()


def test_it_is_the_papers_example():
    packed, padded = run("ems"), run("vanilla")
    for steps in (packed, padded):
        assert [step.plan.draft_lens.tolist() for step in steps] == [[5, 2], [2, 5]]
        assert [step.emitted.tolist() for step in steps] == [[4, 1], [2, 6]]
    assert padding(packed) == ([0, 0], [0, 0])
    assert padding(padded) == ([3, 3], [3, 4])


def test_the_figure_is_up_to_date():
    remedy = "run `python -m docs.figures.draw`"
    assert draw.draw() == draw.FILE.read_text(encoding="utf-8"), remedy
