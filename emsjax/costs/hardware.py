"""Accelerators as their makers publish them. Imports nothing, so that it can be asked first."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

# Products of float32 numbers take a TPU's matrix units six passes over bfloat16 parts.
FLOAT32_PASSES = 6
# What jax takes of a GPU's memory unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
GPU_SHARE = 0.75


class Hardware(NamedTuple):
    """One device.

    Attributes:
      name: for people.
      memory_bytes: of its memory.
      bytes_per_second: of that memory.
      flops: dense 16-bit operations a second.
      float32_flops: of float32 at full precision.
      hertz: cycles a second; 0 for devices that nothing is compiled for.
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
        """Whether there is a compiler for it anywhere."""
        return self.hertz > 0

    def rate(self, itemsize: int) -> float:
        """Operations a second on numbers of so many bytes."""
        return self.float32_flops if itemsize == 4 else self.flops


def _tpu(name: str, gigabytes: float, gb_per_s: float, tflops: float, units: int) -> Hardware:
    """`units`: multipliers of all matrix units; at the peak each is busy in every cycle."""
    flops = tflops * 1e12
    hertz = flops / (2 * units)
    return Hardware(
        f"TPU {name}", gigabytes * 1e9, gb_per_s * 1e9, flops, flops / FLOAT32_PASSES, hertz
    )


def _gpu(name: str, gigabytes: float, gb_per_s: float, tflops: float, float32: float) -> Hardware:
    return Hardware(name, gigabytes * 1e9, gb_per_s * 1e9, tflops * 1e12, float32 * 1e12)


HARDWARE: Mapping[str, Hardware] = MappingProxyType(
    {
        # One chip each: two cores of four 128 x 128 units in v4 and v5p, one core in v5e and v6e.
        "v4": _tpu("v4", 32, 1228, 275, units=8 * 128**2),
        "v5e": _tpu("v5e", 16, 819, 197, units=4 * 128**2),
        "v5p": _tpu("v5p", 95, 2765, 459, units=8 * 128**2),
        "v6e": _tpu("v6e", 32, 1640, 918, units=4 * 256**2),
        "a100": _gpu("NVIDIA A100 SXM", 80, 2039, 312, 19.5),
        "h100": _gpu("NVIDIA H100 SXM", 80, 3350, 989, 67),
        "h200": _gpu("NVIDIA H200 SXM", 141, 4800, 989, 67),
    }
)

# A small server's, as its steps were found to go together; only their balance matters for planning.
PROCESSOR = Hardware("a processor", 0, 12e9, 90e9, 180e9, overlaps=False)
# By what a device's kind has in its name, the more special ones first.
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
# Where the kind is not known.
PLATFORMS = {"tpu": "v5e", "gpu": "a100"}


def hardware_like(platform: str, kind: str) -> Hardware:
    """The device that comes closest.

    Args:
      platform: "cpu", "gpu" or "tpu".
      kind: as jax has it, such as "TPU v5 lite".
    """
    if platform not in PLATFORMS:
        return PROCESSOR
    named = (key for part, key in KINDS.items() if part in kind.lower())
    return HARDWARE[next(named, PLATFORMS[platform])]
