"""The jobs without a slot, and which of them gets the next one."""

from collections import deque
from collections.abc import Callable

from emsjax.engine.job import Job
from emsjax.engine.waiting import WaitingLine


class Candidates:
    """The jobs in line, and those that were set aside because they wait for a program.

    Others pass a job whose program is being compiled, as long as any run. All methods belong to the
    one thread that steps; the line may be used from any thread.
    """

    def __init__(self, line: WaitingLine, most_aside: int):
        """Begins with the jobs of the line.

        Args:
          line: the jobs that wait for a slot.
          most_aside: the most jobs that are set aside at a time.
        """
        self._line, self._most_aside = line, most_aside
        self._aside: deque[Job] = deque()

    def __len__(self) -> int:
        return len(self._line) + len(self._aside)

    @property
    def hungry(self) -> bool:
        """Whether another job would be looked at by the next `first`."""
        return not self._line and len(self._aside) < self._most_aside

    def first(self, ready: Callable[[Job], bool], *, running: bool, held_up: bool) -> Job | None:
        """Returns the job that gets the next slot, and leaves it where it is; None if none can.

        A job that needs a program which is not compiled yet is set aside as long as others run.

        Args:
          ready: returns whether a job's program is compiled, and otherwise has it compiled.
          running: whether any job runs.
          held_up: whether compiling at once would hold up jobs that run.
        """
        if self._aside and ready(self._aside[0]):
            return self._aside[0]
        while len(self._aside) < self._most_aside and (job := self._line.first()) is not None:
            if not (held_up or self._aside) or ready(job):
                return job
            if self._line.remove(job):
                self._aside.append(job)
        if self._aside and not running:
            return self._aside[0]  # nothing is left to run meanwhile
        return None

    def take(self, job: Job) -> bool:
        """Takes the first job from where it waits; returns whether it was still there."""
        if self._aside and self._aside[0] is job:
            self._aside.popleft()
            return True
        return self._line.remove(job)

    def drop(self, job: Job) -> None:
        """Drops a job if it was set aside."""
        waits = [each for each in self._aside if each is not job]
        if len(waits) < len(self._aside):
            self._aside = deque(waits)
