"""Every family writes on several devices what it writes on one.

In a process of their own, as `test_divided.py` says, and in a file of their own, so that the two
may run side by side.
"""

import pytest

from tests.cpu_devices import check_on_devices

pytest.importorskip("torch")


@pytest.mark.slow
def test_on_eight_devices():
    check_on_devices(8, "tests/engine/divided_family_cases.py")
