"""Choosing a kernel backend, and the platform that programs are compiled for."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar

import jax

_TARGET: ContextVar[str | None] = ContextVar("target_platform", default=None)


def target_platform() -> str:
    """The platform being compiled for: "cpu", "gpu" or "tpu"."""
    return _TARGET.get() or jax.default_backend()


@contextlib.contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """Traces for `platform` though the process runs on another (ahead-of-time compilation)."""
    token = _TARGET.set(platform)
    try:
        yield
    finally:
        _TARGET.reset(token)


def pick(operation: str, backends: Mapping[str, Callable], backend: str | None) -> Callable:
    """The implementation of `operation` called `backend`; the reference where it is None.

    Raises:
      ValueError: there is no such backend. A named backend never falls back to another.
    """
    name = backend or "reference"
    if name not in backends:
        raise ValueError(f"{operation} has no backend {name!r}; there is {', '.join(backends)}")
    return backends[name]
