"""Makes sure that Ctrl-C and SIGTERM end a command, whatever it is doing."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

# Seconds until a lost interrupt is raised again.
_AGAIN_S = 0.05


@contextmanager
def no_interrupt_is_lost() -> Iterator[None]:
    """Makes SIGTERM raise KeyboardInterrupt as Ctrl-C does, and raises lost interrupts again.

    Python drops an exception that a finalizer or a callback of the garbage collector raises, and
    jax spends much time in those while it loads and compiles a model. Outside the main thread this
    does nothing, because signals only arrive in the main thread.
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
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)  # still in the hook, which would drop it
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
    """Delays interrupts until the block ends: they may crash an extension module while it loads.

    Raises:
      KeyboardInterrupt: after the block, if an interrupt arrived in it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    held = [number for number, handler in before.items() if callable(handler)]
    for number in held:
        signal.signal(number, lambda number, _frame: arrived.append(number))
    try:
        yield
    finally:
        for number in held:
            signal.signal(number, before[number])
    if arrived:
        raise KeyboardInterrupt


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
