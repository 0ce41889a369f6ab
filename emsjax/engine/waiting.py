"""The line of jobs that wait for a slot."""

import heapq
import threading
from collections.abc import Callable, Sequence

from emsjax.engine.job import Job


class LineFullError(Exception):
    """More jobs would wait than may wait."""


class WaitingLine:
    """Jobs in the order in which they get slots: by priority, then first come, first served.

    All methods may be called from any thread.
    """

    def __init__(self, longest: int | None = None):
        """Starts empty.

        Args:
          longest: the most jobs that may wait; None for no limit.
        """
        self._longest = longest
        self._changed = threading.Condition()
        # Priority, place in the order of arrival, and the job. No two places are the same, so jobs
        # are never compared.
        self._jobs: list[tuple[int, int, Job]] = []
        self._arrived = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def put(self, jobs: Sequence[Job], priority: int = 0) -> None:
        """Adds jobs that arrive together; all of them or, if they are too many, none.

        Args:
          jobs: in the order in which they get slots.
          priority: jobs with a lower number go first.

        Raises:
          LineFullError: too many jobs would wait.
        """
        with self._changed:
            if self._longest is not None and len(self._jobs) + len(jobs) > self._longest:
                raise LineFullError(
                    f"{len(self._jobs)} outputs wait for a slot, and {len(jobs)} more would exceed "
                    f"the {self._longest} that may wait; try again later"
                )
            for job in jobs:
                heapq.heappush(self._jobs, (priority, self._arrived, job))
                self._arrived += 1
            self._changed.notify_all()

    def first(self) -> Job | None:
        """Returns the job that gets the next slot, and leaves it in the line."""
        with self._changed:
            return self._jobs[0][2] if self._jobs else None

    def remove(self, job: Job) -> bool:
        """Takes a job out of the line; returns whether it was there."""
        with self._changed:
            kept = [entry for entry in self._jobs if entry[2] is not job]
            found = len(kept) < len(self._jobs)
            if found and self._jobs[0][2] is job:
                heapq.heappop(self._jobs)
            elif found:
                heapq.heapify(kept)
                self._jobs = kept
            return found

    def notify(self) -> None:
        """Wakes the threads in `wait_for`."""
        with self._changed:
            self._changed.notify_all()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Sleeps until the condition holds; it is checked after `put` and `notify`."""
        with self._changed:
            self._changed.wait_for(condition)
