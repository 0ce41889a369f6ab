"""Functions compiled by Numba for calls from C, kept in files for later processes."""

import contextlib
import hashlib
import os
import pickle
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax.monitoring
import llvmlite
import numba
import numpy as np
from numba.core.ccallback import CFunc
from numba.core.compiler import CompileResult
from numba.core.registry import cpu_target
from numba.core.runtime import rtsys
from numba.core.serialize import dumps

_DIGEST = hashlib.sha256().digest_size
_Function = TypeVar("_Function", bound=Callable[..., Any])


def with_unique_name(function: _Function) -> _Function:
    """Gives a function a name that no other function has, in this process or another.

    Numba counts the functions of a process and makes their symbols from their names and numbers.
    Otherwise a function kept by one process might have the symbol of another function kept by
    another process, and a third one would call the wrong one of the two. The name is drawn for each
    function and not for each process, because a process that forks passes on its numbers.
    """
    function.__qualname__ = f"{function.__qualname__}_{secrets.token_hex(8)}"
    return function


class Kept:
    """Keeps a compiled function in a file, so that later processes do not compile it.

    Numba has a cache too, but that one does not notice changes in the functions that a function
    calls. This file's name depends on all of them, and on all else that decides what the code is.
    The file begins with a digest of the rest, because damaged code would end the process.
    """

    def __init__(self, name: str, sources: list[Path], directory: str | None):
        """Chooses the file.

        Args:
          name: the function's.
          sources: files with all code that it consists of.
          directory: where to keep it; None does not keep it.
        """
        machine = repr(cpu_target.target_context.codegen().magic_tuple())
        texts = [source.read_text(encoding="utf-8") for source in sources]
        versions = [sys.version, np.__version__, numba.__version__, llvmlite.__version__]
        options = repr(sorted(each for each in os.environ.items() if each[0].startswith("NUMBA_")))
        parts = [*versions, machine, options, *texts]
        digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
        self._file = Path(directory) / f"{name}-{digest}.numba" if directory else None

    def load_overload(self, signature: Any, target_context: Any) -> CompileResult | None:
        """Returns the compiled function, or None if the file does not exist or is damaged."""
        del signature
        try:
            content = self._file.read_bytes() if self._file else b""
            digest, code = content[:_DIGEST], content[_DIGEST:]
            if hashlib.sha256(code).digest() == digest:
                return CompileResult._rebuild(target_context, *pickle.loads(code))
        except Exception:  # the file is not there, or was written by something else
            pass
        # Compiling takes seconds, so whoever shows the progress may want to know.
        jax.monitoring.record_event("/emsjax/kernel/compile")
        return None

    def save_overload(self, signature: Any, compiled: CompileResult) -> None:
        """Writes the compiled function; if it cannot be written, that is no error."""
        del signature
        if self._file is None:
            return
        partial = self._file.with_name(f"{self._file.name}.{secrets.token_hex(4)}.partial")
        try:
            code = dumps(compiled._reduce())
            partial.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(hashlib.sha256(code).digest() + code)
            partial.replace(self._file)
        except Exception:
            with contextlib.suppress(OSError):
                partial.unlink()


def compile_for_c(function: Callable, signature: Any, kept: Kept) -> CFunc:
    """Compiles a function that C can call, or finds it compiled."""
    rtsys.initialize(cpu_target.target_context)  # for functions that were found compiled
    types_of = (signature.args, signature.return_type)
    found = CFunc(with_unique_name(function), types_of, {}, {"error_model": "numpy"})
    vars(found)["_cache"] = kept
    found.compile()
    return found
