"""Decodes a stream of jobs, which is taken one job at a time."""

from collections.abc import Generator, Iterable

from emsjax.engine.job import Failed, Finished, Job
from emsjax.engine.slots import Slots


class _Source:
    """The stream of jobs, until it ends or fails.

    Attributes:
      more: whether it may have more jobs.
      failure: the error with which it ended; None if it did not.
    """

    def __init__(self, jobs: Iterable[Job | None]):
        self._jobs = iter(jobs)
        self.more = True
        self.failure: Exception | None = None

    def next(self) -> Job | None:
        """Returns the next job; None if the stream has none yet, or has ended."""
        if not self.more:
            return None
        try:
            return next(self._jobs)
        except StopIteration:
            self.more = False
        except Exception as failure:
            self.more, self.failure = False, failure
        return None


def decode_stream(
    slots: Slots, jobs: Iterable[Job | None]
) -> Generator[Finished | None, None, None]:
    """Decodes all jobs: takes a job whenever a slot is free, and one job ahead.

    Args:
      slots: free slots.
      jobs: None means that no job is ready yet; the jobs in the slots continue meanwhile. If the
        iterable raises, earlier jobs are finished first.

    Yields:
      Each result when it is final; None after new tokens of a watched job.
    """
    source = _Source(jobs)
    while True:
        slots.fill()
        # Only by taking the next job does the host learn whether any job waits.
        while slots.hungry and (job := source.next()) is not None:
            slots.submit([job])
            slots.fill()
        if slots.busy:
            ended, watched = slots.step(source.more)
            for result in ended:
                if isinstance(result, Failed):
                    raise result.error
                yield result
            if watched:
                yield None
        elif source.failure is not None:
            raise source.failure
        elif not source.more:
            slots.rest()
            return
