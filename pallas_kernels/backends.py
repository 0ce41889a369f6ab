"""Chooses kernel backends, by the platform that programs are compiled for."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax

_TARGET: ContextVar["Target | None"] = ContextVar("target", default=None)
_PICKED: ContextVar[dict[str, str] | None] = ContextVar("picked_backends", default=None)


class Target(NamedTuple):
    """What programs are compiled for.

    Attributes:
      platform: "cpu", "gpu" or "tpu".
      capability: compute capability of the GPU, such as "9.0"; None if it is not known.
      device: the kind of device, as jax names it; None if it is not known.
    """

    platform: str
    capability: str | None = None
    device: str | None = None


def target_platform() -> str:
    """Returns the platform that programs are compiled for: "cpu", "gpu" or "tpu"."""
    target = _TARGET.get()
    return jax.default_backend() if target is None else target.platform


def target_capability() -> str | None:
    """Returns the compute capability of the GPU that programs are compiled for, if it is known."""
    if (target := _TARGET.get()) is not None and target.capability is not None:
        return target.capability
    return str(jax.devices()[0].compute_capability) if jax.default_backend() == "gpu" else None


def target_device() -> str | None:
    """Returns the kind of device that programs are compiled for, as jax names it, if known."""
    target = _TARGET.get()
    return str(jax.devices()[0].device_kind) if target is None else target.device


@contextlib.contextmanager
def compiling_for(
    platform: str, capability: str | None = None, device: str | None = None
) -> Iterator[None]:
    """Sets the target, which may differ from the process's device (compiling ahead of time).

    Args:
      platform: "cpu", "gpu" or "tpu".
      capability: see `Target`.
      device: see `Target`.
    """
    token = _TARGET.set(Target(platform, capability, device))
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
      backend: the implementation to use, which never falls back to another. None uses the first
        that is named after the target platform and supports the arguments, else the reference. A
        name may continue after the platform's: "gpu-triton".
      *args: passed to `unsupported`.
      **kwargs: passed to `unsupported`.

    Raises:
      ValueError: the named backend does not exist, or does not support these arguments.
    """
    if backend is not None:
        _check_usable(operation, backends, backend, *args, **kwargs)
        name = backend
    else:
        name = suited(backends, *args, **kwargs)
    if (picked := _PICKED.get()) is not None:
        picked[operation] = name
    return backends[name]().run


def suited(backends: Backends, *args: Any, **kwargs: Any) -> str:
    """Returns the name of the backend that `pick` uses if none is named."""
    own = (each for each in backends if each.split("-")[0] == target_platform())
    usable = (each for each in own if not backends[each]().unsupported(*args, **kwargs))
    return next(usable, "reference")


def _check_usable(
    operation: str, backends: Backends, backend: str, *args: Any, **kwargs: Any
) -> None:
    """Raises `ValueError` if a backend does not exist or does not support the arguments."""
    if backend not in backends:
        raise ValueError(
            f"{operation} has no backend {backend!r}; use one of {', '.join(backends)}"
        )
    if reason := backends[backend]().unsupported(*args, **kwargs):
        raise ValueError(f"{operation}: backend {backend!r} cannot be used: {reason}")


def always_supported(*args: Any, **kwargs: Any) -> None:
    """The `unsupported` of a backend that supports all arguments."""
    del args, kwargs
