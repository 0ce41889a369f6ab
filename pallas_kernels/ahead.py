"""Compiles for a TPU without one; `environment` lists the variables that this needs."""

import contextlib
from collections.abc import Callable, Iterator

import jax
import numpy as np

from emsjax.pallas_kernels.backends import compiling_for

TOPOLOGIES = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
# Makes both cores of a v4 one device with all of the chip's memory. jax does so on a real v4; the
# compiler must be told.
MEGACORE = {"v4": "megacore"}


def find_device(generation: str) -> jax.Device:
    """Returns a TPU to compile for.

    Args:
      generation: one of `TOPOLOGIES`.

    Raises:
      KeyError: there is no such generation.
      RuntimeError: the TPU compiler is missing or does not know the generation.
    """
    from jax.experimental import topologies

    name, config = TOPOLOGIES[generation], MEGACORE.get(generation)
    options = {} if config is None else {"chip_config_name": config}
    topology = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    return topology.devices[0]


@contextlib.contextmanager
def on_tpu(generation: str) -> Iterator[jax.sharding.Sharding]:
    """Makes programs traced inside compile for a TPU.

    Args:
      generation: one of `TOPOLOGIES`.

    Yields:
      The sharding that places arguments on the TPU.

    Raises:
      KeyError: there is no such generation.
      RuntimeError: as for `find_device`.
    """
    mesh = jax.sharding.Mesh(np.asarray([find_device(generation)]), ("device",))
    with compiling_for("tpu"), jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        yield jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def compile_on(
    generation: str,
    call: Callable[..., jax.Array],
    arguments: Callable[[], tuple],
    donate: int | tuple[int, ...] = (),
) -> jax.stages.Compiled:
    """Compiles a function for a TPU.

    Args:
      generation: one of `TOPOLOGIES`.
      call: the function.
      arguments: returns abstract arguments. It is called with the TPU as target platform, on which
        the cache's shape depends.
      donate: indices of the arguments to donate.
    """
    with on_tpu(generation) as sharding:
        placed = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for x in arguments()]
        return jax.jit(call, donate_argnums=donate).lower(*placed).compile()
