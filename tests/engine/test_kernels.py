"""With interpreted TPU kernels, the engine generates the same text as with XLA alone."""

from dataclasses import replace

import pytest

from tests.engine.setup import jobs, make_engine, tiny_model


def text(name: str, drafter: str) -> dict[object, tuple[int, ...]]:
    engine = make_engine(tiny_model(name), drafter, num_slots=2, capacity=256)
    few = [replace(job, max_tokens=min(job.max_tokens, 6)) for job in jobs(3, longest=20)]
    found = [finished for finished in engine.run(few) if finished is not None]
    return {finished.job.key: finished.token_ids for finished in found}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mistral"])
def test_the_text_is_the_same(name: str, request: pytest.FixtureRequest):
    expected = text(name, "prompt-lookup")
    request.getfixturevalue("interpreting_tpu")
    assert text(name, "prompt-lookup") == expected
