"""Drafts of EAGLE heads in every published format equal an oracle's, and change no text."""

import dataclasses
import functools
from typing import Any

import pytest

from emsjax import LLM, SamplingParams
from emsjax.drafters import Eagle
from emsjax.drafters.beam import choices_of
from emsjax.engine.drafter import passes_of
from emsjax.engine.job import Job
from emsjax.loading.drafter import load_drafter
from tests.drafters.coached import HEADER, LENGTH, SLOTS, WIDTH, check_drafts, target, watched
from tests.drafters.eagle_heads import (
    FORMS,
    TARGET,
    expected_drafts,
    expected_tree,
    head_directory,
)
from tests.drafters.trees import equal_paths
from tests.engine.setup import make_engine, run_all
from tests.tiny import checkpoint

pytest.importorskip("torch")


@functools.cache
def head(name: str) -> Eagle:
    loaded = load_drafter(head_directory(name), target(), LENGTH, dtype="auto", narrowest=4)
    assert isinstance(loaded, Eagle)
    return loaded


BRANCHING = ("speculators", "eagle1")
CASES = [
    *((name, "chain") for name in FORMS if name not in BRANCHING),
    *((name, "beam") for name in BRANCHING),
    *(pytest.param(name, "chain", marks=pytest.mark.slow) for name in BRANCHING),
    pytest.param("speculators", "tree", marks=pytest.mark.slow),
    pytest.param("eagle1", "vanilla", marks=pytest.mark.slow),
    pytest.param("mtp", "beam", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_drafts_equal_those_of_an_oracle(name: str, kind: str):
    """Prompts are longer than a chunk, begin like others, and refill slots."""
    eagle, choices = head(name), choices_of(WIDTH)
    if kind == "beam":
        eagle = dataclasses.replace(eagle, beam_rows=WIDTH * SLOTS)

    def equals(text: list[int], drafted: Any) -> bool:
        if kind != "beam":
            return drafted == expected_drafts(name, text, LENGTH)[: len(drafted)]
        return equal_paths(drafted, expected_tree(name, text, LENGTH, WIDTH, choices))

    method = "vanilla" if kind == "vanilla" else "ems"
    engine = watched(eagle, tree=kind in ("tree", "beam"), method=method)
    check_drafts(engine, equals, shares=kind != "vanilla")


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_a_tree_is_as_wide_as_asked_for_and_no_deeper_than_its_rows_have_bits(width: int):
    eagle = dataclasses.replace(head("eagle3"), draft_length=31, beam_rows=width * SLOTS)
    passes = passes_of(eagle, SLOTS)
    assert passes.rows == width
    if width > 1:
        assert 32 - width < (passes.depth - 1) * width <= 32
    assert passes_of(dataclasses.replace(eagle, draft_length=5), SLOTS).depth == 5


def test_outputs_that_share_a_prompt_say_so():
    """Although the head reads one more token of it again than the target."""
    engine = make_engine(target().model, head("eagle3"), SLOTS, trace=True)
    group = object()
    traces = [r.trace for r in run_all(engine, [Job(n, HEADER, 6, group=group) for n in range(3)])]
    assert [trace.prompt_shared for trace in traces] == [False, True, True]


@pytest.mark.slow
def test_texts_are_those_of_plain_decoding():
    prompts = [HEADER, [7], [*HEADER[:50], 9, 11], HEADER[40:60] * 4]
    params = [SamplingParams(max_tokens=30, temperature=t, seed=3) for t in (0, 0.8, 1.2, 0)]
    options = {"max_batch_size": SLOTS, "max_model_len": 200}
    plain = LLM(str(checkpoint(TARGET)), drafter="none", **options).generate(prompts, params)
    draft = str(head_directory("speculators"))
    llm = LLM(str(checkpoint(TARGET)), draft_model=draft, planner=False, **options)
    outputs = llm.generate(prompts, params)
    assert [o.outputs[0].token_ids for o in outputs] == [p.outputs[0].token_ids for p in plain]
    assert sum(o.metrics.drafted_tokens for o in outputs) > 100
