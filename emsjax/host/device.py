"""The default device: whether there is one, its name, and its free memory."""

import os
import platform
from pathlib import Path
from typing import Any

import jax
import psutil
from jax.experimental.layout import Format, Layout

from emsjax.errors import foreign


def check_device() -> None:
    """Checks that jax can use the platform that `JAX_PLATFORMS` names, or any if it is not set.

    Raises:
      UserError: it cannot.
    """
    asked = jax.config.values["jax_platforms"]
    wanted = f"the platform {asked!r} of JAX_PLATFORMS" if asked else "any device"
    remedy = "install jax for the device, or set JAX_PLATFORMS=cpu"
    with foreign(f"jax cannot use {wanted}", remedy):
        jax.devices()


def device_name(number: int = 1) -> str:
    """Names the default device, or several like it; for a CPU with the number of usable cores."""
    device, times = jax.devices()[0], "" if number == 1 else f"{number} times "
    if device.platform != "cpu":
        return f"{times}{device.platform} {device.device_kind}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{times}cpu {_processor()}, {cores} cores"


def _processor() -> str:
    """The processor's model name on Linux, elsewhere its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def put_by_row(value: Any, place: jax.sharding.Sharding | None = None) -> jax.Array:
    """Puts an array of weights at a place, in the order of its axes.

    A TPU prefers the order that takes the least padding. Programs need rows of an embedding and of
    a stack of layers' weights, and would copy all of it to the other order whenever they start.

    Args:
      value: the array.
      place: one device or several; None for the default device.
    """
    device = jax.devices()[0]
    if device.platform != "tpu":
        return jax.device_put(value, place)
    place = jax.sharding.SingleDeviceSharding(device) if place is None else place
    return jax.device_put(value, Format(Layout(tuple(range(value.ndim))), place))


def free_bytes() -> int | None:
    """Returns the free memory of a device of this process in bytes, or None if unknown."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return _available_ram()
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        return None
    return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))


def _available_ram() -> int:
    """The bytes that can be allocated without swapping, within the container's limit if any."""
    available = psutil.virtual_memory().available
    limit, used = (_cgroup_bytes(name) for name in ("memory.max", "memory.current"))
    if limit is None or used is None:
        return available
    return min(available, limit - used)


def _cgroup_bytes(name: str) -> int | None:
    """A number from this process's control group; None if it has no such file or no limit."""
    try:
        return int((Path("/sys/fs/cgroup") / name).read_text())
    except (OSError, ValueError):
        return None
