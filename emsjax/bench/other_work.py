"""Detects whether other processes were busy while something was measured."""

from time import perf_counter

import psutil


class OtherWork:
    """Counts the processor time of all processes except this one and its finished children."""

    def __init__(self) -> None:
        self._seconds, self._at = _others(), perf_counter()

    def since_last_call(self) -> float:
        """The mean number of processors kept busy since the last call, or since creation."""
        seconds, at = _others(), perf_counter()
        busy = (seconds - self._seconds) / max(at - self._at, 1e-9)
        self._seconds, self._at = seconds, at
        return max(busy, 0.0)


def _others() -> float:
    """Processor seconds that other processes have used; only differences of it mean anything."""
    machine, own = psutil.cpu_times(), psutil.Process().cpu_times()
    waiting = machine.idle + getattr(machine, "iowait", 0.0)
    # Linux counts guest time in user time as well.
    guests = getattr(machine, "guest", 0.0) + getattr(machine, "guest_nice", 0.0)
    # The first four are user and system time, of this process and of its children.
    return sum(machine) - waiting - guests - sum(own[:4])
