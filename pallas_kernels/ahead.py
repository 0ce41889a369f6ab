"""Compiling for a TPU that is not there; see `environment` for what that needs."""

import contextlib
from collections.abc import Callable, Iterator

import jax
import numpy as np

from emsjax.pallas_kernels.backends import compiling_for

TOPOLOGIES = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
# Both cores of a chip as one device, with all of its memory: what jax makes of a v4 by itself, and
# the compiler only if told.
MEGACORE = {"v4": "megacore"}


def find_device(generation: str) -> jax.Device:
    """One TPU to compile for.

    Args:
      generation: one of `TOPOLOGIES`.

    Raises:
      KeyError: there is no such generation.
      RuntimeError: the compiler does not know it, or there is none.
    """
    from jax.experimental import topologies

    name, config = TOPOLOGIES[generation], MEGACORE.get(generation)
    options = {} if config is None else {"chip_config_name": config}
    topology = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    return topology.devices[0]


@contextlib.contextmanager
def on_tpu(generation: str) -> Iterator[jax.sharding.Sharding]:
    """Traces for a TPU; gives the sharding that places arguments on one.

    Args:
      generation: one of `TOPOLOGIES`.

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
    """Compiles `call` for abstract arguments, which are made while tracing for the TPU."""
    with on_tpu(generation) as sharding:
        placed = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for x in arguments()]
        return jax.jit(call, donate_argnums=donate).lower(*placed).compile()
