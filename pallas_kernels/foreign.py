"""Makes kernels compiled by Numba available to XLA when a program first needs them."""

import threading
from collections.abc import Callable

_LOCK = threading.Lock()  # programs may be traced in several threads
_OUTCOMES: dict[str, str | None] = {}


def registered(name: str, register: Callable[[str], None]) -> str | None:
    """Registers a kernel once per process; returns why it cannot be had, or None if it can.

    Args:
      name: the name by which programs call it.
      register: compiles the kernel and registers it by that name.
    """
    with _LOCK:
        if name not in _OUTCOMES:
            try:
                register(name)
                _OUTCOMES[name] = None
            # Numba may be missing, or too new or too old for the interface or for NumPy. XLA
            # always works.
            except Exception as error:
                reason = str(error).partition("\n")[0]
                _OUTCOMES[name] = f"Numba does not compile it ({type(error).__name__}: {reason})"
        return _OUTCOMES[name]
