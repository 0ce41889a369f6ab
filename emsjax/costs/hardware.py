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
      platform: "cpu", "gpu" or "tpu".
      memory_bytes: size of its memory.
      bytes_per_second: bandwidth of its memory.
      flops: dense 16-bit operations per second.
      float32_flops: operations per second on float32 at full precision.
      hertz: cycles per second; 0 for devices whose compiler estimates no cycles.
      exposed: the share of the time of reading that multiplying cannot hide: 0 if it reads and
        multiplies at the same time, 1 if in turn.
    """

    name: str
    platform: str
    memory_bytes: float
    bytes_per_second: float
    flops: float
    float32_flops: float
    hertz: float = 0.0
    exposed: float = 0.0

    @property
    def usable_bytes(self) -> int:
        """The memory that jax takes for itself."""
        return int(self.memory_bytes * (GPU_SHARE if self.platform == "gpu" else 1))

    def rate(self, itemsize: int) -> float:
        """Operations per second on numbers of `itemsize` bytes."""
        return self.float32_flops if itemsize == 4 else self.flops


def _tpu(name: str, gigabytes: float, gb_per_s: float, tflops: float, units: int) -> Hardware:
    """A TPU whose matrix units have `units` multipliers in all.

    At peak, each multiplier does a multiplication and an addition per cycle, which gives the clock.
    """
    flops = tflops * 1e12
    hertz = flops / (2 * units)
    sizes = gigabytes * 1e9, gb_per_s * 1e9
    return Hardware(f"TPU {name}", "tpu", *sizes, flops, flops / FLOAT32_PASSES, hertz)


def _gpu(name: str, gigabytes: float, gb_per_s: float, tflops: float, float32: float) -> Hardware:
    sizes = gigabytes * 1e9, gb_per_s * 1e9
    return Hardware(f"NVIDIA {name}", "gpu", *sizes, tflops * 1e12, float32 * 1e12)


HARDWARE: Mapping[str, Hardware] = MappingProxyType(
    {
        # Figures of one chip. v4 and v5p have two cores of four 128 x 128 units, v5e and v6e one
        # core; v6e's four units are 256 x 256.
        "v4": _tpu("v4", 32, 1228, 275, units=8 * 128**2),
        "v5e": _tpu("v5e", 16, 819, 197, units=4 * 128**2),
        "v5p": _tpu("v5p", 95, 2765, 459, units=8 * 128**2),
        "v6e": _tpu("v6e", 32, 1640, 918, units=4 * 256**2),
        # NVIDIA's data sheets, without sparsity. That of the RTX PRO 6000 Server states only 4,000
        # TFLOP/s of sparse 4-bit numbers, which are eight times those of dense 16-bit numbers.
        "h100": _gpu("H100 SXM", 80, 3350, 989, 67),
        "h200": _gpu("H200 SXM", 141, 4800, 989, 67),
        "b200": _gpu("B200 HGX", 180, 7700, 2250, 75),
        "a100": _gpu("A100 SXM", 80, 2039, 312, 19.5),
        "a100-40gb": _gpu("A100 SXM 40 GB", 40, 1555, 312, 19.5),
        "l4": _gpu("L4", 24, 300, 121, 30.3),
        "t4": _gpu("T4", 16, 320, 65, 8.1),
        "g4": _gpu("RTX PRO 6000 Server", 96, 1597, 500, 120),
    }
)

# Fitted to measured steps of 1 to 128 rows of SmolLM2-135M-Instruct in float32 on two cores of an
# AMD EPYC (Zen 4). Planning depends only on the ratios of these figures.
PROCESSOR = Hardware("a processor", "cpu", 0, 37e9, 310e9, 620e9, exposed=0.65)
# Keys of `HARDWARE` by a part of the device's kind. The first match counts: "v5 lite" before "v5".
KINDS = {
    "v4": "v4",
    "v5 lite": "v5e",
    "v5e": "v5e",
    "v5": "v5p",
    "v6": "v6e",
    "h200": "h200",
    "h100": "h100",
    "b200": "b200",
    "a100-sxm4-40gb": "a100-40gb",
    "a100": "a100",
    # An L40S, too: it is three times as fast at everything.
    "l4": "l4",
    "t4": "t4",
    "rtx pro 6000": "g4",
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
