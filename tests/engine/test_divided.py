"""Devices that share a model write what one device writes.

The cases need several devices, which a CPU can pretend to be from the start of a process. So they
are in files of their own, which pytest runs in another process.
"""

import pytest

from tests.cpu_devices import check_on_devices

pytest.importorskip("torch")

CASES = (
    "tests/engine/divided_cases.py",
    "tests/engine/divided_drafter_cases.py",
    "tests/loading/divided_loading_cases.py",
)


@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_on_eight_devices(which: str):
    check_on_devices(8, "-m", which, *CASES)
