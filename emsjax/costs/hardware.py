"""Accelerators and their published figures. Imports no jax, so that commands may use it early."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

# A TPU's matrix units compute a float32 product in six passes over bfloat16 parts.
FLOAT32_PASSES = 6
# Share of a GPU's memory that jax takes unless XLA_PYTHON_CLIENT_MEM_FRACTION is set.
GPU_SHARE = 0.75


class Hardware(NamedTuple):
    """One device.

    Attributes:
      name: as messages show it.
      memory_bytes: size of its memory.
      bytes_per_second: bandwidth of its memory.
      flops: dense 16-bit operations per second.
      float32_flops: operations per second on float32 at full precision.
      hertz: cycles per second; 0 for devices that this package does not compile for.
      overlaps: whether it reads and multiplies at the same time.
    """

    name: str
    memory_bytes: float
    bytes_per_second: float
    flops: float
    float32_flops: float
    hertz: float = 0.0
    overlaps: bool = True

    @property
    def is_tpu(self) -> bool:
        """Whether it is a TPU, for which programs can be compiled on any machine."""
        return self.hertz > 0

    def rate(self, itemsize: int) -> float:
        """Operations per second on numbers of `itemsize` bytes."""
        return self.float32_flops if itemsize == 4 else self.flops


def _tpu(name: str, gigabytes: float, gb_per_s: float, tflops: float, units: int) -> Hardware:
    """A TPU whose matrix units have `units` multipliers in all.

    At peak, each multiplier does a multiplication and an addition per cycle, which gives the clock.
    """
    flops = tflops * 1e12
    hertz = flops / (2 * units)
    return Hardware(
        f"TPU {name}", gigabytes * 1e9, gb_per_s * 1e9, flops, flops / FLOAT32_PASSES, hertz
    )


def _gpu(name: str, gigabytes: float, gb_per_s: float, tflops: float, float32: float) -> Hardware:
    return Hardware(name, gigabytes * 1e9, gb_per_s * 1e9, tflops * 1e12, float32 * 1e12)


HARDWARE: Mapping[str, Hardware] = MappingProxyType(
    {
        # Figures of one chip. v4 and v5p have two cores of four 128 x 128 units, v5e and v6e one
        # core; v6e's four units are 256 x 256.
        "v4": _tpu("v4", 32, 1228, 275, units=8 * 128**2),
        "v5e": _tpu("v5e", 16, 819, 197, units=4 * 128**2),
        "v5p": _tpu("v5p", 95, 2765, 459, units=8 * 128**2),
        "v6e": _tpu("v6e", 32, 1640, 918, units=4 * 256**2),
        "a100": _gpu("NVIDIA A100 SXM", 80, 2039, 312, 19.5),
        "h100": _gpu("NVIDIA H100 SXM", 80, 3350, 989, 67),
        "h200": _gpu("NVIDIA H200 SXM", 141, 4800, 989, 67),
    }
)

# Fitted to measured steps of a small server. Planning depends only on the ratios of these figures.
PROCESSOR = Hardware("a processor", 0, 12e9, 90e9, 180e9, overlaps=False)
# Keys of `HARDWARE` by a part of the device's kind. The first match counts: "v5 lite" before "v5".
KINDS = {
    "v4": "v4",
    "v5 lite": "v5e",
    "v5e": "v5e",
    "v5": "v5p",
    "v6": "v6e",
    "h200": "h200",
    "h100": "h100",
    "a100": "a100",
}
# Keys of `HARDWARE` for devices of an unknown kind.
PLATFORMS = {"tpu": "v5e", "gpu": "a100"}


def hardware_like(platform: str, kind: str) -> Hardware:
    """Returns the known device that is closest to one of jax's.

    Args:
      platform: "cpu", "gpu" or "tpu".
      kind: jax's `device_kind`, such as "TPU v5 lite".
    """
    if platform not in PLATFORMS:
        return PROCESSOR
    named = (key for part, key in KINDS.items() if part in kind.lower())
    return HARDWARE[next(named, PLATFORMS[platform])]
