"""Makes kernels compiled by Numba available to XLA when a program first needs them."""

import threading
from collections.abc import Callable

import jax
import numpy as np

# How kernels receive numbers of a type: those that Numba does not have as their bits, two int4 in a
# byte.
STORED = {"float32": "float32", "bfloat16": "uint16", "int8": "int8", "int4": "uint8"}

_LOCK = threading.Lock()  # programs may be traced in several threads
_OUTCOMES: dict[str, str | None] = {}


def name_of(operation: str, dtype: object) -> str:
    """Returns the name by which programs call an operation's kernel for a type of `STORED`."""
    return f"emsjax.{operation}.{STORED[str(dtype)]}"


def kept_in() -> str | None:
    """Returns the directory where jax keeps its programs; None if there is none on this machine."""
    directory = jax.config.values["jax_compilation_cache_dir"]
    used = directory and jax.config.values["jax_enable_compilation_cache"]
    return directory if used and "://" not in directory else None


def registered(
    operation: str, dtype: object, load: Callable[[], Callable[[str, np.dtype], None]]
) -> str | None:
    """Registers a kernel once per process; returns why it cannot be had, or None if it can.

    Args:
      operation: the operation.
      dtype: a type of `STORED`.
      load: imports what compiles the kernel and registers it, given its name and the stored type.
        Importing Numba takes a while, and other platforms do not need it.
    """
    name = name_of(operation, dtype)
    with _LOCK:
        if name not in _OUTCOMES:
            try:
                load()(name, np.dtype(STORED[str(dtype)]))
                _OUTCOMES[name] = None
            # Numba may be missing, or too new or too old for the interface or for NumPy. XLA
            # always works.
            except Exception as error:
                reason = str(error).partition("\n")[0]
                _OUTCOMES[name] = f"Numba does not compile it ({type(error).__name__}: {reason})"
        return _OUTCOMES[name]
