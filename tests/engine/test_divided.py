"""Devices that share a model write what one device writes.

The cases need several devices, which a CPU can pretend to be from the start of a process. So they
are in files of their own, which pytest runs in another process.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cpu_devices import flags_for

pytest.importorskip("torch")

ROOT = Path(__file__).parents[2]
CASES = (
    "tests/engine/divided_cases.py",
    "tests/engine/divided_drafter_cases.py",
    "tests/loading/divided_loading_cases.py",
)


@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_on_eight_devices(which: str):
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-m", which, *CASES],
        env=os.environ | {"XLA_FLAGS": flags_for(8)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
