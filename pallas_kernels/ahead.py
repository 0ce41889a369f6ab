"""Compiles for a TPU or GPU without one; `environment` lists the variables that this needs."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np

from emsjax.pallas_kernels.backends import compiling_for
from emsjax.pallas_kernels.gpu_targets import GPUS, description
from emsjax.shapes import SHARDS

TOPOLOGIES = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
# Makes both cores of a v4 one device with all of the chip's memory. jax does so on a real v4; the
# compiler must be told.
MEGACORE = {"v4": "megacore"}
# Trying several versions of a product to choose the fastest needs the GPU.
_GPU_OPTIONS: dict[str, str | bool] = {"xla_gpu_autotune_level": "0"}


def find_device(name: str) -> jax.Device:
    """Returns a TPU or GPU to compile for.

    Args:
      name: one of `TOPOLOGIES` or `GPUS`.

    Raises:
      KeyError: there is no such device.
      NotImplementedError: the GPU compiler is missing.
      RuntimeError: the TPU compiler is missing, or the compiler does not know the device.
    """
    from jax.experimental import topologies

    if name in GPUS:
        target = description(GPUS[name])
        topology = topologies.get_topology_desc(
            platform="cuda", topology="1x1x1", target_config=target
        )
        return topology.devices[0]
    config = MEGACORE.get(name)
    options = {} if config is None else {"chip_config_name": config}
    topology = topologies.get_topology_desc(TOPOLOGIES[name], platform="tpu", **options)
    return topology.devices[0]


@contextlib.contextmanager
def on_device(name: str) -> Iterator[jax.sharding.Sharding]:
    """Makes programs traced inside compile for a TPU or GPU.

    Args:
      name: one of `TOPOLOGIES` or `GPUS`.

    Yields:
      The sharding that places arguments on the device.

    Raises:
      Exception: as for `find_device`.
    """
    device = find_device(name)
    mesh = jax.sharding.Mesh(np.asarray([device]), ("device",))
    platform = "gpu" if name in GPUS else "tpu"
    capability = GPUS[name].capability if name in GPUS else None
    with (
        compiling_for(platform, capability, str(device.device_kind)),
        jax.sharding.use_abstract_mesh(mesh.abstract_mesh),
    ):
        yield jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


@contextlib.contextmanager
def on_topology(topology: str) -> Iterator[jax.sharding.Mesh]:
    """Makes programs traced inside compile for all chips of a TPU host or slice.

    Args:
      topology: as the TPU compiler names it, such as "v5e:2x4".

    Yields:
      A mesh of the chips, whose one axis is `SHARDS`.

    Raises:
      RuntimeError: the TPU compiler is missing, or it does not know the topology.
    """
    from jax.experimental import topologies

    chips = topologies.get_topology_desc(topology, platform="tpu").devices
    mesh = jax.sharding.Mesh(np.asarray(chips), (SHARDS,))
    with compiling_for("tpu"), jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        yield mesh


def compile_lowered(
    name: str, lowered: jax.stages.Lowered, dump: Path | None = None
) -> jax.stages.Compiled:
    """Compiles what was lowered inside `on_device` for the same device.

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
