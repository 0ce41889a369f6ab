"""Ctrl-C and SIGTERM end a command, whatever it is doing."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

_AGAIN_S = 0.05


@contextmanager
def no_interrupt_is_lost() -> Iterator[None]:
    """While it lasts SIGTERM raises KeyboardInterrupt, as Ctrl-C does, and does so until it counts.

    Python drops an exception that a callback of the garbage collector or a finalizer raises, and
    while a model is loaded and compiled jax spends much time in such. Does nothing outside the main
    thread, which is where signals arrive.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    hook = sys.unraisablehook

    def dropped(what: "sys.UnraisableHookArgs") -> None:
        if issubclass(what.exc_type, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
        else:
            hook(what)

    def again(number: int, frame: FrameType | None) -> None:
        if frame is not None and frame.f_code is dropped.__code__:
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)  # too early: it would be dropped here
        else:
            _interrupt(number, frame)

    handlers = {signal.SIGTERM: _interrupt, signal.SIGALRM: again}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    sys.unraisablehook = dropped
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Holds interrupts back until it ends: extension modules may crash if they come while loading.

    Raises:
      KeyboardInterrupt: at the end, if one came.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    held = [number for number, handler in before.items() if callable(handler)]
    for number in held:
        signal.signal(number, lambda number, _frame: came.append(number))
    try:
        yield
    finally:
        for number in held:
            signal.signal(number, before[number])
    if came:
        raise KeyboardInterrupt


def comes_from_interrupt(error: BaseException) -> bool:
    """Whether it is what others made of a KeyboardInterrupt: extension modules and libraries do."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, KeyboardInterrupt):
        cause = cause.__cause__ or cause.__context__
    return cause is not None


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
