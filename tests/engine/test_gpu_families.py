"""The real GPU compiler compiles the decode program of every family for a Hopper GPU.

And for an L4, which has the least shared memory, of those with heads that few families have.
"""

import pytest

from emsjax.models.registry import FAMILIES
from tests.engine.test_compiled import check_no_kernel_is_copied
from tests.engine.test_compiled_families import of_family
from tests.engine.test_gpu_programs import check_no_copy_of_a_slot, compile_for
from tests.ladders import one_rung

pytestmark = [pytest.mark.gpu_compiler, pytest.mark.usefixtures("no_compile_cache")]


# Heads 256, 80 and 96 wide, and 71 that share their keys.
UNUSUAL = ("gemma2", "phi", "phi3", "falcon")


@pytest.mark.parametrize(
    ("gpu", "family"),
    [*(("h100", family) for family in FAMILIES), *(("l4", family) for family in UNUSUAL)],
)
def test_gpu(gpu: str, family: str):
    engine, compiled = compile_for(gpu, of_family(family), make=one_rung)
    check_no_copy_of_a_slot(engine, compiled)
    check_no_kernel_is_copied(engine, compiled)
