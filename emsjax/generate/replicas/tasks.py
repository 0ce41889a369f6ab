"""The tasks that no replica has yet."""

from collections import deque
from collections.abc import Iterable

from emsjax.generate.replicas.messages import Task


class Tasks:
    """Tasks that are taken one by one, and may be put back.

    Attributes:
      arriving: whether the latest `next` found that the next task has not arrived yet.
      failure: the error with which taking them ended; None if it did not.
    """

    def __init__(self, coming: Iterable[Task | None] = ()):
        """Takes nothing yet.

        Args:
          coming: the tasks, read lazily; None means that the next one has not arrived yet. If it
            raises an error, there are no more tasks.
        """
        self._coming = iter(coming)
        self._back: deque[Task] = deque()
        self._more = True
        self.arriving = False
        self.failure: Exception | None = None

    @property
    def ended(self) -> bool:
        """Whether `next` has found that there is no other task."""
        return not (self._more or self._back)

    def next(self) -> Task | None:
        """Takes the next task; None if there is none now."""
        self.arriving = False
        if self._back:
            return self._back.popleft()
        if not self._more:
            return None
        try:
            task = next(self._coming)
        except StopIteration:
            self._more, task = False, None
        except Exception as error:
            self._more, task, self.failure = False, None, error
        self.arriving = self._more and task is None
        return task

    def put_back(self, tasks: Iterable[Task]) -> None:
        """Puts tasks back, to be taken before all others."""
        self._back.extend(tasks)
