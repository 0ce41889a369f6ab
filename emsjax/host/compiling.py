"""Notices when jax compiles for long."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_LONG_S = 1.0
# jax's events: it looks into its cache for a program, has found it there, has compiled it.
_ASKED = "/jax/compilation_cache/compile_requests_use_cache"
_FOUND = "/jax/compilation_cache/cache_hits"
_COMPILED = "/jax/core/compile/backend_compile_duration"


class _Watch:
    """Calls back, once, if a compilation takes longer than a second."""

    def __init__(self) -> None:
        self.call: Callable[[], None] | None = None
        self._timers: dict[int, threading.Timer] = {}  # by the thread that compiles

    def event(self, event: str, *_: Any, **__: Any) -> None:
        """Listens to all of jax's events."""
        thread = threading.get_ident()
        if event in (_ASKED, _FOUND, _COMPILED) and thread in self._timers:
            self._timers.pop(thread).cancel()
        if event == _ASKED and self.call is not None:
            timer = self._timers[thread] = threading.Timer(_LONG_S, self._fire)
            timer.daemon = True
            timer.start()

    def _fire(self) -> None:
        call, self.call = self.call, None
        if call is not None:
            call()


_watch: _Watch | None = None


@contextmanager
def when_compiling(call: Callable[[], None]) -> Iterator[None]:
    """Calls `call`, at most once and in another thread, if jax compiles for long in the block.

    A program that jax finds in its cache is not compiled.
    """
    global _watch  # noqa: PLW0603 jax keeps listeners for good, so there is one for all blocks
    if _watch is None:
        import jax.monitoring

        _watch = _Watch()
        jax.monitoring.register_event_listener(_watch.event)
        jax.monitoring.register_event_duration_secs_listener(_watch.event)
    _watch.call = call
    try:
        yield
    finally:
        _watch.call = None
