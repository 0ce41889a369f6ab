"""The real GPU compiler compiles the program that the GPUs of a server share, with the kernels."""

import pytest

from tests.engine.collectives import (
    check_no_copy_of_weights,
    collectives,
    expected_collectives,
)
from tests.engine.switches import PLAIN
from tests.engine.test_compiled_divided import WIDE, compile_divided

pytestmark = [pytest.mark.gpu_compiler, pytest.mark.usefixtures("no_compile_cache")]


@pytest.mark.parametrize(
    ("gpu", "number", "config"),
    [("h100", 2, PLAIN), ("h100", 8, WIDE), ("a100", 8, PLAIN), ("l4", 4, PLAIN)],
)
def test_gpus_of_a_server(gpu, number, config):
    engine, compiled = compile_divided(gpu, number, config=config)
    text = compiled.as_text()
    if gpu == "h100":
        # The attention and the four products of a layer.
        assert text.count('custom_call_target="mosaic_gpu') == 5 * len(engine.ladder)
    assert collectives(text) == expected_collectives(engine, number, config)
    check_no_copy_of_weights(engine, compiled)
