"""Does the cache fit? Asked before anything is allocated."""

import math
from pathlib import Path

import jax
import psutil

from emsjax.drafters.base import Drafter
from emsjax.errors import UserError
from emsjax.model_protocol import Model


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


def check_cache_fits(model: Model, drafter: Drafter, num_slots: int, capacity: int) -> None:
    """Refuses a cache that cannot fit in what memory the device has left.

    Args:
      model: loaded already, so that what it takes is not counted as free.
      drafter: likewise; a draft model has a cache of its own.
      num_slots: B.
      capacity: S, in tokens.

    Raises:
      UserError: with the sizes and the largest batch that would fit.
    """
    own = jax.eval_shape(lambda: drafter.init(1, capacity))
    parts = [model.cache_spec(1, capacity), *jax.tree.leaves(own)]
    per_slot = sum(math.prod(part.shape) * part.dtype.itemsize for part in parts)
    free = free_bytes()
    if free is None or num_slots * per_slot <= free:
        return
    fitting = free // per_slot
    remedy = (
        f"the largest batch size that fits is {fitting}"
        if fitting
        else f"one sample of at most {capacity * free // per_slot} tokens would fit"
    )
    raise UserError(
        f"the K/V cache of {num_slots} samples of {capacity} tokens needs "
        f"{num_slots * per_slot / 2**30:.2f} GiB and {free / 2**30:.2f} GiB are free: {remedy}"
    )
