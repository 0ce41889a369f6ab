"""`python -m emsjax.plan` for GPUs, with the figures of the real GPU compiler."""

import os
import subprocess
import sys

import pytest

from emsjax.costs.hardware import HARDWARE
from emsjax.errors import UserError
from emsjax.pallas_kernels import ahead, gpu_targets
from emsjax.plan.compiler import check_compiler
from emsjax.plan.estimate import estimate
from emsjax.plan.program import compile_program
from tests.plan.test_forecast import setting

pytestmark = [pytest.mark.gpu_compiler, pytest.mark.usefixtures("no_compile_cache")]


def test_memory_is_the_compilers_and_agrees_with_the_estimate():
    given = setting(topology="l4")
    found, counted = compile_program(given), estimate(given).memory
    memory = found.memory
    assert memory.compiled
    assert (memory.weights, memory.cache) == (counted.weights, counted.cache)
    assert counted.state <= memory.state <= counted.state + 100_000
    assert 0 < memory.temporaries < counted.temporaries + memory.cache
    assert found.cycles is None, "the GPU compiler estimates none"


@pytest.mark.parametrize("topology", [name for name in HARDWARE if name in gpu_targets.GPUS])
def test_the_compiler_knows_every_gpu(topology: str):
    check_compiler(topology)


def test_a_gpu_that_the_compiler_does_not_know(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ahead, "description", lambda gpu: "gpu_device_info { colour: 7 }")
    with pytest.raises(UserError, match=r"GPU compiler .* does not know NVIDIA L4 \(.*\); update"):
        check_compiler("l4")


def test_the_command_says_what_the_compiler_reported():
    """As users call it, in a process that has not prepared for any compiler."""
    arguments = ["--model", "smollm2-135m", "--topology", "t4", "--dtype", "float16"]
    command = [sys.executable, "-m", "emsjax.plan", *arguments, "--batch-size", "4"]
    environment = {name: value for name, value in os.environ.items() if "TPU" not in name}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "the GPU compiler compiled the decode program" in done.stdout
    assert "reported its memory. Nothing ran." in done.stdout
    assert "batch 4 " in done.stdout
    assert all(line.startswith("compiling ") for line in done.stderr.splitlines()), done.stderr
