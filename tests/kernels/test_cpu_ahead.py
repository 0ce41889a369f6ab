"""What is read ahead on CPU reaches every byte, at most a line at a time."""

import pytest

from emsjax.pallas_kernels import cpu_ahead

# What is compiled for kernels cannot be called from Python.
at_once, spread = cpu_ahead.at_once.py_func, cpu_ahead.spread.py_func


@pytest.mark.parametrize("size", [0, 1, 63, 64, 2304, 9216])
@pytest.mark.parametrize("steps", [1, 7, 36])
def test_parts_cover_all_bytes(size, steps):
    whole, reached = at_once(1000, 100, 300, size), 0
    for part in range(3):
        begin, end = size * part // 3, size * (part + 1) // 3
        ahead = spread(whole, begin, end, steps)
        assert ahead[:3] == whole[:3]
        assert ahead.done == begin == reached, "a part begins where the one before it ends"
        assert ahead.step <= 64
        assert (ahead.times == 0) == (begin == end)
        read = steps * ahead.times * ahead.step
        assert end - begin <= read <= end - begin + steps * ahead.times, "rounded up, no more"
        reached = end


def test_no_step_reads_nothing():
    assert spread(at_once(0, 1, 1, 0), 0, 0, 0).times == 0
