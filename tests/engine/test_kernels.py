"""With the TPU kernels, interpreted, the engine writes the text that it writes with XLA alone."""

import pytest

from tests.engine.setup import jobs, make_engine, tiny_model


def text(name: str, drafter: str) -> dict[int, list[int]]:
    engine = make_engine(tiny_model(name), drafter, num_slots=2, capacity=256)
    few = [job._replace(max_tokens=min(job.max_tokens, 6)) for job in jobs(3, longest=20)]
    return {found.key: list(found.tokens) for found in engine.run(few) if found is not None}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_the_text_is_the_same(name: str, request: pytest.FixtureRequest):
    expected = text(name, "prompt-lookup")
    request.getfixturevalue("interpreting_tpu")
    assert text(name, "prompt-lookup") == expected
