"""Choosing a kernel backend, and the platform that programs are compiled for."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax

_TARGET: ContextVar[str | None] = ContextVar("target_platform", default=None)
_PICKED: ContextVar[dict[str, str] | None] = ContextVar("picked_backends", default=None)


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


@contextlib.contextmanager
def noting_backends() -> Iterator[dict[str, str]]:
    """The backend that each operation traced within is given, filled in as that happens."""
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
      unsupported: given the operation's arguments, why it cannot be used; None if it can.
    """

    run: Callable[..., Any]
    unsupported: Callable[..., str | None]


def pick(
    operation: str, backends: Mapping[str, Backend], backend: str | None, *args: Any, **kwargs: Any
) -> Callable[..., Any]:
    """The implementation of `operation` called `backend`.

    None takes the one named like the platform, where there is one and it can be used, else the
    reference. A named one never falls back to another.

    Args:
      operation: its name, for errors.
      backends: all implementations, by name.
      backend: the wanted one.
      *args: what `unsupported` is asked about.
      **kwargs: the same.

    Raises:
      ValueError: there is no such backend, or it cannot be used with these arguments.
    """
    name, why_not = target_platform() if backend is None else backend, None
    if name not in backends:
        why_not = f"{operation} has no backend {name!r}; there is {', '.join(backends)}"
    elif reason := backends[name].unsupported(*args, **kwargs):
        why_not = f"{operation}: backend {name!r} cannot be used: {reason}"
    if why_not and backend is not None:
        raise ValueError(why_not)
    name = "reference" if why_not else name
    if (picked := _PICKED.get()) is not None:
        picked[operation] = name
    return backends[name].run


def always_supported(*args: Any, **kwargs: Any) -> None:
    """What a backend says that takes everything."""
    del args, kwargs
