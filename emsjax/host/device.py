"""What computes here, in words."""

import os
import platform
from pathlib import Path

import jax
import psutil


def device_name() -> str:
    """The default device; of a processor also how much of it there is."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{device.platform} {device.device_kind}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"cpu {_processor()}, {cores} cores"


def _processor() -> str:
    """Its name, where Linux tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def free_bytes() -> int | None:
    """Memory left on the default device, in bytes; None where it cannot be known."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return _available_ram()
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        return None
    return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))


def _available_ram() -> int:
    """What can be allocated without swapping, within the container's limit if there is one."""
    available = psutil.virtual_memory().available
    limit, used = (_cgroup_bytes(name) for name in ("memory.max", "memory.current"))
    if limit is None or used is None:
        return available
    return min(available, limit - used)


def _cgroup_bytes(name: str) -> int | None:
    """A figure of this process's control group; None where there is none, or no limit."""
    try:
        return int((Path("/sys/fs/cgroup") / name).read_text())
    except (OSError, ValueError):
        return None
