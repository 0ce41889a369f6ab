"""Keeps Python's garbage collector out of the way while a program starts."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def garbage_waits() -> Iterator[None]:
    """Collects no garbage inside the block.

    Importing libraries and tracing programs make a million objects that stay. Python would look
    through all of them again and again, which takes a fifth of the time.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
