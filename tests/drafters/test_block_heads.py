"""Drafts of DFlash and Medusa heads equal an oracle's, and change no text."""

import dataclasses
from typing import Any

import pytest

from emsjax.drafters import DFlash, Medusa
from emsjax.drafters.beam import choices_of
from emsjax.engine.drafter import passes_of
from emsjax.loading.drafter import load_drafter
from tests.drafters.block_heads import expected_chances, head_directory
from tests.drafters.coached import LENGTH, SLOTS, WIDTH, check_drafts, target, watched
from tests.drafters.trees import beam_of, equal_paths

pytest.importorskip("torch")
CASES = [
    ("dflash", "beam"),
    ("dflash-sliding", "chain"),
    ("medusa", "chain"),
    ("medusa-vllm", "beam"),
    pytest.param("medusa-one-output", "beam", marks=pytest.mark.slow),
    pytest.param("dflash", "vanilla", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_drafts_equal_those_of_an_oracle(name: str, kind: str):
    loaded = load_drafter(head_directory(name), target(), LENGTH, dtype="auto", narrowest=4)
    assert isinstance(loaded, DFlash if name.startswith("dflash") else Medusa)
    passes = passes_of(loaded, SLOTS)
    assert passes.needed(passes.depth) == 1, "all places are guessed at once"
    if kind == "beam":
        loaded = dataclasses.replace(loaded, beam_rows=WIDTH * SLOTS)

    def equals(text: list[int], drafted: Any) -> bool:
        chances = expected_chances(name, text)[:LENGTH]
        if kind == "beam":
            return equal_paths(drafted, beam_of(chances, WIDTH, choices_of(WIDTH)))
        return drafted == [int(each.argmax()) for each in chances][: len(drafted)]

    method = "vanilla" if kind == "vanilla" else "ems"
    engine = watched(loaded, tree=kind == "beam", method=method)
    check_drafts(engine, equals, shares=False)
