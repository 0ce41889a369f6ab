"""jax aborts a process that loses host 0, at the moment in which this package notices it, too."""

import ctypes
import signal
import sys


def delay_aborts() -> None:
    """Has an abort of this process wait, so that other threads can say why and end it before.

    The thread that aborts is one of jax's, and calls the C library's `sleep` with the number of the
    signal, 6: no Python, because whatever holds the interpreter's lock would hold it up.
    """
    if sys.platform == "win32":
        return
    library = ctypes.CDLL(None)
    library.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    library.signal.restype = ctypes.c_void_p
    library.signal(signal.SIGABRT, ctypes.cast(library.sleep, ctypes.c_void_p))
