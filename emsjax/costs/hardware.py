"""Accelerators and their published figures. Imports no jax, so that commands may use it early."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

# A TPU's matrix units compute a float32 product in six passes over bfloat16 parts.
FLOAT32_PASSES = 6
# Share of a GPU's memory that jax takes unless XLA_PYTHON_CLIENT_MEM_FRACTION is set.
GPU_SHARE = 0.75
# A microsecond from chip to chip, by "How to Scale Your Model" (jax-ml.github.io/scaling-book).
_TPU_HOP = 1e-6
# What NCCL itself goes by to choose how to add up little data in a ring (`tuning.cc`, protocol LL).
_NCCL_START, _NVLINK_HOP, _PCIE_HOP = 6.6e-6, 0.6e-6, 1.0e-6


class Link(NamedTuple):
    """What joins the devices of a host or slice.

    Attributes:
      bytes_per_second: what a device sends to its neighbours in a ring while it receives as much.
      start_seconds: before anything is sent.
      hop_seconds: from a device to the next.
    """

    bytes_per_second: float
    start_seconds: float
    hop_seconds: float


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
      link: to devices of its kind; None if it is not known.
    """

    name: str
    platform: str
    memory_bytes: float
    bytes_per_second: float
    flops: float
    float32_flops: float
    hertz: float = 0.0
    exposed: float = 0.0
    link: Link | None = None

    @property
    def usable_bytes(self) -> int:
        """The memory that jax takes for itself."""
        return int(self.memory_bytes * (GPU_SHARE if self.platform == "gpu" else 1))

    def rate(self, itemsize: int) -> float:
        """Operations per second on numbers of `itemsize` bytes."""
        return self.float32_flops if itemsize == 4 else self.flops


def _tpu(
    name: str, gigabytes: float, gb_per_s: float, tflops: float, *, units: int, port: float
) -> Hardware:
    """A TPU whose matrix units have `units` multipliers in all.

    At peak, each multiplier does a multiplication and an addition per cycle, which gives the clock.
    A ring takes two of a chip's ports, each of which sends `port` gigabytes per second.
    """
    flops = tflops * 1e12
    hertz = flops / (2 * units)
    sizes = gigabytes * 1e9, gb_per_s * 1e9
    return Hardware(
        f"TPU {name}",
        "tpu",
        *sizes,
        flops,
        flops / FLOAT32_PASSES,
        hertz,
        link=Link(2 * port * 1e9, 0.0, _TPU_HOP),
    )


def _gpu(
    name: str,
    gigabytes: float,
    gb_per_s: float,
    tflops: float,
    float32: float,
    *,
    nvlink: float = 0,
    pcie: float = 0,
) -> Hardware:
    """A GPU that sends gigabytes per second to others, over NVLink or else over PCI Express."""
    sizes = gigabytes * 1e9, gb_per_s * 1e9
    link = Link((nvlink or pcie) * 1e9, _NCCL_START, _NVLINK_HOP if nvlink else _PCIE_HOP)
    return Hardware(f"NVIDIA {name}", "gpu", *sizes, tflops * 1e12, float32 * 1e12, link=link)


HARDWARE: Mapping[str, Hardware] = MappingProxyType(
    {
        # Figures of one chip. v4 and v5p have two cores of four 128 x 128 units, v5e and v6e one
        # core; v6e's four units are 256 x 256. Google Cloud's pages state the bandwidth of a chip's
        # ports in both directions: 600 GB/s (v4) and 1,200 (v5p) of six, 400 (v5e) and 800 (v6e) of
        # four.
        "v4": _tpu("v4", 32, 1228, 275, units=8 * 128**2, port=50),
        "v5e": _tpu("v5e", 16, 819, 197, units=4 * 128**2, port=50),
        "v5p": _tpu("v5p", 95, 2765, 459, units=8 * 128**2, port=100),
        "v6e": _tpu("v6e", 32, 1640, 918, units=4 * 256**2, port=100),
        # NVIDIA's data sheets, without sparsity. That of the RTX PRO 6000 Server states only 4,000
        # TFLOP/s of sparse 4-bit numbers, which are eight times those of dense 16-bit numbers. Of
        # links the sheets state both directions, and here is one.
        "h100": _gpu("H100 SXM", 80, 3350, 989, 67, nvlink=450),
        "h200": _gpu("H200 SXM", 141, 4800, 989, 67, nvlink=450),
        "b200": _gpu("B200 HGX", 180, 7700, 2250, 75, nvlink=900),
        "a100": _gpu("A100 SXM", 80, 2039, 312, 19.5, nvlink=300),
        "a100-40gb": _gpu("A100 SXM 40 GB", 40, 1555, 312, 19.5, nvlink=300),
        "l4": _gpu("L4", 24, 300, 121, 30.3, pcie=32),
        "t4": _gpu("T4", 16, 320, 65, 8.1, pcie=16),
        "g4": _gpu("RTX PRO 6000 Server", 96, 1597, 500, 120, pcie=64),
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
