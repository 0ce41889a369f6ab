"""What is read ahead on CPU reaches every byte, at most a line at a time."""

import pytest

from emsjax.pallas_kernels import cpu_ahead
from emsjax.pallas_kernels.cpu_ahead import Runs

# What is compiled for kernels cannot be called from Python.
spread = cpu_ahead.spread.py_func


@pytest.mark.parametrize("size", [0, 1, 63, 64, 2304, 9216])
@pytest.mark.parametrize("steps", [1, 7, 36])
def test_parts_cover_all_bytes(size, steps):
    runs, reached = Runs(1000, 100, 300, size), 0
    for part in range(3):
        begin, end = size * part // 3, size * (part + 1) // 3
        ahead = spread(runs, begin, end, steps)
        assert ahead[:3] == runs[:3]
        assert ahead.done == begin == reached, "a part begins where the one before it ends"
        assert ahead.step <= 64
        assert (ahead.times == 0) == (begin == end)
        read = steps * ahead.times * ahead.step
        assert end - begin <= read <= end - begin + steps * ahead.times, "rounded up, no more"
        reached = end


def test_no_step_reads_nothing():
    assert spread(Runs(0, 1, 1, 0), 0, 0, 0).times == 0
