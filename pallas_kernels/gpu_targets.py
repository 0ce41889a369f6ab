"""Describes NVIDIA GPUs to XLA's compiler, which needs no GPU if it is told what one is like.

The figures are those that the driver reports, and the memory bandwidth of the data sheet.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class GPUTarget(NamedTuple):
    """One GPU.

    Attributes:
      name: as jax shows it.
      major: first part of the compute capability.
      minor: second part of the compute capability.
      cores: number of multiprocessors.
      lanes: float32 units of a multiprocessor.
      threads: most threads of a multiprocessor.
      shared_bytes: shared memory of a multiprocessor.
      block_bytes: most shared memory of one thread block.
      cache_bytes: L2 cache.
      memory_bytes: memory that programs see.
      bytes_per_second: bandwidth of the memory.
      gigahertz: highest clock.
    """

    name: str
    major: int
    minor: int
    cores: int
    lanes: int
    threads: int
    shared_bytes: int
    block_bytes: int
    cache_bytes: int
    memory_bytes: int
    bytes_per_second: int
    gigahertz: float

    @property
    def capability(self) -> str:
        """Compute capability, such as "9.0"."""
        return f"{self.major}.{self.minor}"


_KIB, _MIB = 1 << 10, 1 << 20
_HOPPER = (9, 0, 132, 128, 2048, 228 * _KIB, 227 * _KIB, 50 * _MIB)
_AMPERE = (8, 0, 108, 64, 2048, 164 * _KIB, 163 * _KIB, 40 * _MIB)
GPUS: Mapping[str, GPUTarget] = MappingProxyType(
    {
        "h100": GPUTarget("NVIDIA H100 80GB HBM3", *_HOPPER, 81008 * _MIB, 3352 * 10**9, 1.98),
        "h200": GPUTarget("NVIDIA H200", *_HOPPER, 144384 * _MIB, 4800 * 10**9, 1.98),
        "b200": GPUTarget(
            "NVIDIA B200",
            *(10, 0, 148, 128, 2048, 228 * _KIB, 227 * _KIB, 126 * _MIB),
            *(182642 * _MIB, 7672 * 10**9, 1.965),
        ),
        "a100": GPUTarget("NVIDIA A100-SXM4-80GB", *_AMPERE, 81158 * _MIB, 2039 * 10**9, 1.41),
        "a100-40gb": GPUTarget("NVIDIA A100-SXM4-40GB", *_AMPERE, 40536 * _MIB, 1555 * 10**9, 1.41),
        "l4": GPUTarget(
            "NVIDIA L4",
            *(8, 9, 58, 128, 1536, 100 * _KIB, 99 * _KIB, 48 * _MIB),
            *(22598 * _MIB, 300 * 10**9, 2.04),
        ),
        "t4": GPUTarget(
            "Tesla T4",
            *(7, 5, 40, 64, 1024, 64 * _KIB, 64 * _KIB, 4 * _MIB),
            *(15095 * _MIB, 320 * 10**9, 1.59),
        ),
        "g4": GPUTarget(
            "NVIDIA RTX PRO 6000 Blackwell Server Edition",
            *(12, 0, 188, 128, 1536, 128 * _KIB, 99 * _KIB, 128 * _MIB),
            *(97250 * _MIB, 1597 * 10**9, 2.6),
        ),
    }
)


def description(gpu: GPUTarget) -> str:
    """Returns the text form of XLA's `GpuTargetConfigProto`."""
    # Some instructions, such as Hopper's `wgmma`, exist only in code for exactly one architecture.
    features = "ACCELERATED_FEATURES" if gpu.major in (9, 10) else "NONE"
    return f"""
gpu_device_info {{
  cuda_compute_capability {{
    major: {gpu.major} minor: {gpu.minor} feature_extension: {features}
  }}
  core_count: {gpu.cores}
  fpus_per_core: {gpu.lanes}
  threads_per_core_limit: {gpu.threads}
  shared_memory_per_core: {gpu.shared_bytes}
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {gpu.block_bytes}
  l2_cache_size: {gpu.cache_bytes}
  device_memory_size: {gpu.memory_bytes}
  memory_bandwidth: {gpu.bytes_per_second}
  clock_rate_ghz: {gpu.gigahertz}
  threads_per_block_limit: 1024 threads_per_warp: 32
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
runtime_version {{ major: 13 }}
device_description_str: "{gpu.name}"
"""
