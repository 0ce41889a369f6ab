"""Compiles for a TPU or GPU without one; `environment` lists the variables that this needs."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from emsjax.pallas_kernels.backends import compiling_for
from emsjax.pallas_kernels.gpu_targets import GPUS, description
from emsjax.shapes import SHARDS

# Up to four chips of a TPU, and eight of them.
TOPOLOGIES = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
_EIGHT_CHIPS = {"v4": "v4:2x2x2", "v5e": "v5e:2x4", "v5p": "v5p:2x2x2", "v6e": "v6e:2x4"}
# Makes both cores of a v4 one device with all of the chip's memory. jax does so on a real v4; the
# compiler must be told.
MEGACORE = {"v4": "megacore"}
# Trying several versions of a product to choose the fastest needs the GPU.
_GPU_OPTIONS: dict[str, str | bool] = {"xla_gpu_autotune_level": "0"}


def find_devices(name: str, number: int = 1) -> Sequence[jax.Device]:
    """Returns TPUs or GPUs to compile for, which are linked with each other.

    Args:
      name: one of `TOPOLOGIES` or `GPUS`.
      number: how many, at most 8.

    Raises:
      KeyError: there is no such device.
      NotImplementedError: the GPU compiler is missing.
      RuntimeError: the TPU compiler is missing, or the compiler does not know the device.
    """
    from jax.experimental import topologies

    if name in GPUS:
        target = description(GPUS[name])
        # Slices, hosts and devices of a host.
        topology = topologies.get_topology_desc(
            platform="cuda", topology=f"1x1x{number}", target_config=target
        )
        return topology.devices
    config = MEGACORE.get(name)
    options = {} if config is None else {"chip_config_name": config}
    shape = (TOPOLOGIES if number <= 4 else _EIGHT_CHIPS)[name]
    return topologies.get_topology_desc(shape, platform="tpu", **options).devices[:number]


@contextlib.contextmanager
def on_device(name: str) -> Iterator[jax.sharding.Sharding]:
    """Makes programs traced inside compile for a TPU or GPU.

    Args:
      name: one of `TOPOLOGIES` or `GPUS`.

    Yields:
      The sharding that places arguments on the device.

    Raises:
      Exception: as for `find_devices`.
    """
    with on_devices(name, 1) as mesh:
        yield jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


@contextlib.contextmanager
def on_devices(name: str, number: int) -> Iterator[jax.sharding.Mesh]:
    """Makes programs traced inside compile for several TPUs or GPUs that share a model.

    Args:
      name: one of `TOPOLOGIES` or `GPUS`.
      number: how many devices, at most 8.

    Yields:
      A mesh of the devices, whose one axis is `SHARDS`.

    Raises:
      Exception: as for `find_devices`.
    """
    devices = find_devices(name, number)
    mesh = jax.sharding.Mesh(np.asarray(devices), (SHARDS,))
    platform = "gpu" if name in GPUS else "tpu"
    capability = GPUS[name].capability if name in GPUS else None
    with (
        compiling_for(platform, capability, str(devices[0].device_kind)),
        jax.sharding.use_abstract_mesh(mesh.abstract_mesh),
    ):
        yield mesh


def compile_lowered(
    name: str, lowered: jax.stages.Lowered, dump: Path | None = None
) -> jax.stages.Compiled:
    """Compiles what was lowered inside `on_device` or `on_devices` for the same devices.

    Args:
      name: one of `TOPOLOGIES` or `GPUS`.
      lowered: the program.
      dump: an empty directory into which the GPU compiler writes its account of every kernel. For a
        TPU see `environment`.
    """
    if name not in GPUS:
        return lowered.compile()
    if dump is None:
        return lowered.compile(_GPU_OPTIONS)
    with _mosaic_dumps(dump):
        return lowered.compile(_GPU_OPTIONS | {"xla_dump_to": str(dump)})


@contextlib.contextmanager
def _mosaic_dumps(dump: Path) -> Iterator[None]:
    """Makes Mosaic's compiler for GPUs write into a directory. It reads only the environment."""
    wanted = {"MOSAIC_GPU_DUMP_TO": str(dump), "MOSAIC_GPU_DUMP_HOST_LLVM": "1"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def compile_on(
    name: str,
    call: Callable[..., jax.Array],
    arguments: Callable[[], tuple],
    donate: int | tuple[int, ...] = (),
    dump: Path | None = None,
) -> jax.stages.Compiled:
    """Compiles a function for a TPU or GPU.

    Args:
      name: one of `TOPOLOGIES` or `GPUS`.
      call: the function.
      arguments: returns abstract arguments. It is called with the device's platform as target, on
        which the cache's shape depends.
      donate: indices of the arguments to donate.
      dump: see `compile_lowered`.
    """
    with on_device(name) as sharding:
        placed = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), arguments()
        )
        lowered = jax.jit(call, donate_argnums=donate).lower(*placed)
        return compile_lowered(name, lowered, dump)
