"""Compiles most of a CPU kernel in a process of its own, while this one does something else.

Compiling the attention takes seconds, and a new machine has to do it once. Python would do it in
turn with all else, even in a thread, because most of it holds the interpreter's lock.
"""

import contextlib
import subprocess
import sys
from pathlib import Path

import jax

from emsjax.pallas_kernels.foreign import STORED, kept_in, name_of

_WAIT_S = 60.0
_PROGRAM = """
import sys
import jax
import numpy as np
from emsjax.pallas_kernels.host_call import compile_run
from {module} import register_kernel
name, dtype, directory = sys.argv[1:]
jax.config.update("jax_compilation_cache_dir", directory)
register_kernel(name, np.dtype(dtype), compile_run)
"""

_RUNNING: dict[str, subprocess.Popen] = {}


def compile_beside(operation: str, dtype: object) -> None:
    """Starts to compile the slowest part of an operation's kernel on CPU, unless one is kept.

    Args:
      operation: the operation, whose kernel is in its folder.
      dtype: the type of its operands; nothing is done for types without kernels.
    """
    directory, stored = kept_in(), STORED.get(str(dtype))
    if jax.default_backend() != "cpu" or directory is None or stored is None:
        return
    name = name_of(operation, dtype)
    # A kernel of an older version is not worth a process in every run of this one: it is only
    # compiled once more.
    if name in _RUNNING or any(Path(directory).glob(f"{name}.*.numba")) or not sys.executable:
        return
    program = _PROGRAM.format(module=f"emsjax.pallas_kernels.{operation}.cpu_kernel")
    command = [sys.executable, "-c", program, name, stored, directory]
    # There may be no room for another process; then this one compiles the kernel later.
    with contextlib.suppress(OSError):
        _RUNNING[name] = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


def wait_for(name: str) -> None:
    """Waits until the process that compiles a kernel has ended, if there is one.

    Whether it succeeded does not matter: what it has not kept is compiled again.
    """
    process = _RUNNING.pop(name, None)
    if process is None:
        return
    try:
        process.wait(_WAIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
