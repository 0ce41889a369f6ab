"""The real GPU compiler compiles the decode program of every family for a Hopper GPU."""

import pytest

from emsjax.models.registry import FAMILIES
from tests.engine.test_compiled import check_no_kernel_is_copied
from tests.engine.test_compiled_families import of_family
from tests.engine.test_gpu_programs import check_no_copy_of_a_slot, compile_for
from tests.ladders import one_rung

pytestmark = [pytest.mark.gpu_compiler, pytest.mark.usefixtures("no_compile_cache")]


@pytest.mark.parametrize("family", FAMILIES)
def test_hopper(family: str):
    engine, compiled = compile_for("h100", of_family(family), make=one_rung)
    check_no_copy_of_a_slot(engine, compiled)
    check_no_kernel_is_copied(engine, compiled)
