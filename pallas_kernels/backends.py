"""Chooses kernel backends, by the platform that programs are compiled for."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax

_TARGET: ContextVar[str | None] = ContextVar("target_platform", default=None)
_PICKED: ContextVar[dict[str, str] | None] = ContextVar("picked_backends", default=None)


def target_platform() -> str:
    """Returns the platform that programs are compiled for: "cpu", "gpu" or "tpu"."""
    return _TARGET.get() or jax.default_backend()


@contextlib.contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """Sets the target platform, which may differ from the process's (compiling ahead of time)."""
    token = _TARGET.set(platform)
    try:
        yield
    finally:
        _TARGET.reset(token)


@contextlib.contextmanager
def noting_backends() -> Iterator[dict[str, str]]:
    """Yields a dictionary that collects the backend of each operation traced inside, by name."""
    picked: dict[str, str] = {}
    token = _PICKED.set(picked)
    try:
        yield picked
    finally:
        _PICKED.reset(token)


class Backend(NamedTuple):
    """One implementation of an operation.

    Attributes:
      run: the implementation.
      unsupported: takes the operation's arguments and returns why they cannot be handled, or None
        if they can.
    """

    run: Callable[..., Any]
    unsupported: Callable[..., str | None]


# The backends of an operation, by name. Each is made by a function that imports it, so that only a
# backend that a program may use is imported: those for GPUs and TPUs take half a second.
Backends = Mapping[str, Callable[[], Backend]]


def pick(
    operation: str, backends: Backends, backend: str | None, *args: Any, **kwargs: Any
) -> Callable[..., Any]:
    """Returns an implementation of an operation.

    Args:
      operation: its name, for errors.
      backends: all implementations, by name.
      backend: the implementation to use, which never falls back to another. None uses the one named
        after the target platform if it exists and supports the arguments, else the reference.
      *args: passed to `unsupported`.
      **kwargs: passed to `unsupported`.

    Raises:
      ValueError: the named backend does not exist, or does not support these arguments.
    """
    name, why_not = target_platform() if backend is None else backend, None
    if name not in backends:
        why_not = f"{operation} has no backend {name!r}; use one of {', '.join(backends)}"
    elif reason := backends[name]().unsupported(*args, **kwargs):
        why_not = f"{operation}: backend {name!r} cannot be used: {reason}"
    if why_not and backend is not None:
        raise ValueError(why_not)
    name = "reference" if why_not else name
    if (picked := _PICKED.get()) is not None:
        picked[operation] = name
    return backends[name]().run


def always_supported(*args: Any, **kwargs: Any) -> None:
    """The `unsupported` of a backend that supports all arguments."""
    del args, kwargs
