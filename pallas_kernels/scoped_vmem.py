"""How much of its on-chip memory a TPU's compiler may use for one operation.

A product reads its weights in blocks. The first block is awaited, and each one has a fixed cost, so
few large ones are faster. The default limit suits chips with less memory.
"""

from types import MappingProxyType

from emsjax.pallas_kernels.backends import target_device, target_platform

# In KiB, for half of the memory of chips that have 128 MiB of it, or 64 MiB (v5p), by jax's name.
_LIMITS = MappingProxyType({"TPU v5 lite": 64 << 10, "TPU v5": 32 << 10, "TPU v6 lite": 64 << 10})


def compiler_options() -> dict[str, str] | None:
    """Returns the options to compile a decode program with for the target; None for none."""
    limit = _LIMITS.get(target_device() or "") if target_platform() == "tpu" else None
    return None if limit is None else {"xla_tpu_scoped_vmem_limit_kib": str(limit)}
