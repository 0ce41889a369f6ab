"""Notices when jax or a kernel compiles for long."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_LONG_S = 1.0
# jax's events: it turns to a program, looks into its cache for it, has found it there, and has the
# program. The first and the last have the same name, but the first comes as a scalar.
_BEGUN = _COMPILED = "/jax/core/compile/backend_compile_duration"
_ASKED = "/jax/compilation_cache/compile_requests_use_cache"
_FOUND = "/jax/compilation_cache/cache_hits"
# Recorded by `pallas_kernels/kept_functions.py` when Numba is about to compile a kernel.
_KERNEL_BEGUN = "/emsjax/kernel/compile"
# The name that is reported for all kernels.
KERNEL = "kernel"


class _Watch:
    """Calls back, once for each program, if its compilation takes longer than a second."""

    def __init__(self) -> None:
        self.call: Callable[[str], None] | None = None
        self.called: set[str] = set()
        # The threads that compile now, and what is known of each.
        self.compiling: set[int] = set()
        self._names: dict[int, str] = {}
        self._timers: dict[int, threading.Timer] = {}

    def begun(self, event: str, value: float, **about: str | int) -> None:
        """Listens to all of jax's scalars."""
        del value
        if event == _BEGUN:
            self.compiling.add(threading.get_ident())
            name = str(about.get("fun_name", ""))
            self._names[threading.get_ident()] = name.removeprefix("jit(").removesuffix(")")

    def event(self, event: str, *_: Any, **__: Any) -> None:
        """Listens to all of jax's events."""
        thread = threading.get_ident()
        if event == _KERNEL_BEGUN:
            self._fire(KERNEL)
        if event == _COMPILED:
            self.compiling.discard(thread)
        if event in (_ASKED, _FOUND, _COMPILED) and thread in self._timers:
            self._timers.pop(thread).cancel()
        name = self._names.get(thread, "")
        if event == _ASKED and self.call is not None and name not in self.called:
            timer = self._timers[thread] = threading.Timer(_LONG_S, self._fire, [name])
            timer.daemon = True
            timer.start()

    def _fire(self, name: str) -> None:
        call = self.call
        if call is not None and name not in self.called:
            self.called.add(name)
            call(name)


_watch: _Watch | None = None


@contextmanager
def when_compiling(call: Callable[[str], None]) -> Iterator[None]:
    """Calls `call` with a program's name, in another thread, if jax compiles it for long.

    It is called with `KERNEL`, in the thread that compiles, if Numba compiles a kernel. Each name
    is reported once. A program that jax finds in its cache is not compiled.
    """
    watch = watch_compiling()
    watch.call, watch.called = call, set()
    try:
        yield
    finally:
        watch.call = None


def compiling_now() -> bool:
    """Returns whether jax compiles a program in any thread, if that is watched."""
    return _watch is not None and bool(_watch.compiling)


def watch_compiling() -> _Watch:
    """Has jax say from now on what it compiles."""
    global _watch  # noqa: PLW0603 jax keeps listeners for good, so there is one
    if _watch is None:
        import jax.monitoring

        _watch = _Watch()
        jax.monitoring.register_scalar_listener(_watch.begun)
        jax.monitoring.register_event_listener(_watch.event)
        jax.monitoring.register_event_duration_secs_listener(_watch.event)
    return _watch
