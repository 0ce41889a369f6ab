"""Programs that are compiled in threads, while the slots continue with those they have."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context


class Beside:
    """What is being compiled, or has been, by name."""

    def __init__(self) -> None:
        """Starts with nothing."""
        self._futures: dict[str, Future[None]] = {}

    def done(self, name: str, compile_it: Callable[[], None]) -> bool:
        """Returns whether something is compiled; the first call starts that in a thread."""
        if name not in self._futures:
            pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="compile")
            self._futures[name] = pool.submit(copy_context().run, compile_it)
            pool.shutdown(wait=False)  # ends the thread when it is done
        return self._futures[name].done()

    def wait(self, name: str) -> None:
        """Waits for what was started, if it was, and raises what went wrong."""
        if name in self._futures:
            self._futures[name].result()

    def forget(self) -> None:
        """Forgets all, because other programs are needed from now on."""
        self._futures.clear()
