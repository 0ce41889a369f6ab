"""Whether anything else ran while something was measured."""

from time import perf_counter

import psutil


class OtherWork:
    """Counts the processor time of all processes but this one and its children."""

    def __init__(self) -> None:
        self._seconds, self._at = _others(), perf_counter()

    def since_last_asked(self) -> float:
        """How many processors others kept busy, on average, since then."""
        seconds, at = _others(), perf_counter()
        busy = (seconds - self._seconds) / max(at - self._at, 1e-9)
        self._seconds, self._at = seconds, at
        return max(busy, 0.0)


def _others() -> float:
    """Seconds since some time ago."""
    machine, own = psutil.cpu_times(), psutil.Process().cpu_times()
    waiting = machine.idle + getattr(machine, "iowait", 0.0)
    # Guests' time is in the users' already.
    guests = getattr(machine, "guest", 0.0) + getattr(machine, "guest_nice", 0.0)
    return sum(machine) - waiting - guests - sum(own[:4])
