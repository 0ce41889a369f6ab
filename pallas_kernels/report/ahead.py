"""Compiling for a TPU that is not there; see `environment` for what that needs."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emsjax.pallas_kernels.backends import compiling_for
from emsjax.pallas_kernels.kv_layout import LANES, rows_per_token
from emsjax.pallas_kernels.ragged_attention.api import ragged_attention
from emsjax.pallas_kernels.report.work import Work

TOPOLOGIES = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
# Both cores of a chip as one device, with all of its memory: what jax makes of a v4 by itself, and
# the compiler only if told.
MEGACORE = {"v4": "megacore"}
# Of the cache that is compiled for.
NUM_LAYERS = 4


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


def compile_attention(generation: str, work: Work, **options: Any) -> jax.stages.Compiled:
    """Our kernel for this work; fails where the TPU compiler would.

    Args:
      generation: one of `TOPOLOGIES`.
      work: its shapes.
      **options: see `attention_call`.
    """
    call = attention_call(work, "tpu", **options)
    return compile_on(generation, call, functools.partial(attention_arguments, work))


def attention_call(
    work: Work, backend: str, *, tree: bool = False, holed: bool = False, **options: Any
) -> Callable[..., jax.Array]:
    """The attention of one layer, as a function of `attention_arguments`.

    Args:
      work: its shapes.
      backend: of `ragged_attention`.
      tree: whether ancestors are used.
      holed: whether there are holes.
      **options: static ones of `ragged_attention`.
    """
    _, num_kv_heads, head_dim = work.heads

    def call(
        q: jax.Array,
        cache: jax.Array,
        layer: jax.Array,
        cu_q_lens: jax.Array,
        kv_lens: jax.Array,
        ancestors: jax.Array,
    ) -> jax.Array:
        return ragged_attention(
            q,
            cache,
            layer=layer,
            cu_q_lens=cu_q_lens,
            kv_lens=kv_lens,
            num_kv_heads=num_kv_heads,
            max_q_len=work.max_q_len,
            scale=head_dim**-0.5,
            ancestors=ancestors if tree else None,
            holes=some_holes(kv_lens, cache.shape[2]) if holed else None,
            backend=backend,
            **options,
        )

    return call


def some_holes(kv_lens: jax.Array, capacity: int) -> jax.Array:
    """Places bool[B, S] that no compiler can know beforehand."""
    places = jnp.arange(capacity, dtype=jnp.int32)[None]
    return places % 7 == (kv_lens % 7)[:, None]


def attention_arguments(work: Work) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Abstract arguments for the platform that is being compiled for."""
    num_heads, num_kv_heads, head_dim = work.heads
    dtype = jnp.bfloat16 if work.itemsize == 2 else jnp.float32
    rows = rows_per_token(num_kv_heads, head_dim)
    cache = (NUM_LAYERS, work.num_slots, work.capacity, rows, LANES)
    return (
        jax.ShapeDtypeStruct((work.num_rows, num_heads, head_dim), dtype),
        jax.ShapeDtypeStruct(cache, dtype),
        jax.ShapeDtypeStruct((), jnp.int32),
        jax.ShapeDtypeStruct((work.num_slots + 1,), jnp.int32),
        jax.ShapeDtypeStruct((work.num_slots,), jnp.int32),
        jax.ShapeDtypeStruct((work.num_rows,), jnp.uint32),
    )
