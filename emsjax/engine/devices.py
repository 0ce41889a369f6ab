"""The devices that share a model, and programs that run on all of them in step.

Weights and the K/V cache are divided among the devices, and everything else is the same on all of
them. A program is one `jax.shard_map`, whose check proves the second half when it is compiled: what
decides how a loop goes on cannot differ between devices, which would then wait for each other
forever. With one device, programs are what they would be without this module.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from emsjax.errors import UserError
from emsjax.sampling.vocabulary import WHOLE, DividedVocabulary, Vocabulary
from emsjax.shapes import SHARDS

SAME = PartitionSpec()
# The K/V cache [L, B, S, R, 128]: each device has its own heads' rows.
CACHE = PartitionSpec(None, None, None, SHARDS)


@dataclass(frozen=True)
class Devices:
    """One device, or several that share a model.

    Attributes:
      mesh: of one axis `SHARDS`; None for the default device alone.
      ordered_sums: whether they add their results one after another, as `exact` needs.
    """

    mesh: Mesh | None = None
    ordered_sums: bool = False

    @property
    def number(self) -> int:
        """How many devices there are."""
        return 1 if self.mesh is None else self.mesh.size

    def vocabulary(self, size: int) -> Vocabulary:
        """Returns which of a model's `size` tokens the logits are of that each device makes."""
        return WHOLE if self.mesh is None else DividedVocabulary(size)

    @property
    def of_this_process(self) -> list[int]:
        """The numbers of the devices that belong to this process, not to that of another host."""
        if self.mesh is None:
            return [0]
        every = enumerate(self.mesh.devices.flat)
        return [number for number, each in every if each.process_index == jax.process_index()]

    def program(
        self,
        function: Callable[..., Any],
        arguments: Sequence[Any],
        result: Any,
        donate: tuple[int, ...] = (),
        options: dict[str, str] | None = None,
    ) -> Any:
        """Returns a function that is compiled for all devices, as `jax.jit` does for one.

        Args:
          function: what each device computes from its parts of the arguments.
          arguments: for each argument a prefix of its tree, with the places on the mesh.
          result: the same for the result.
          donate: numbers of the arguments whose memory the result may have.
          options: of the compiler.
        """
        how: dict[str, Any] = {"donate_argnums": donate, "compiler_options": options}
        if self.mesh is None:
            return jax.jit(function, **how)
        divided = jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=tuple(arguments),
            out_specs=result,
            check_vma=True,
        )

        @functools.wraps(function)
        def named(*given: Any) -> Any:
            return divided(*given)

        return jax.jit(named, **how, out_shardings=self.places(result))

    def places(self, specs: Any) -> Any:
        """Returns a tree of places on the mesh as shardings."""
        assert self.mesh is not None
        mesh = self.mesh
        return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)

    @property
    def everywhere(self) -> NamedSharding | None:
        """The place of an array that every device has; None for the default device."""
        return None if self.mesh is None else NamedSharding(self.mesh, SAME)

    def to_all(self, tree: Any) -> Any:
        """Returns a tree of arrays of which every device has all."""
        return tree if self.mesh is None else jax.tree.map(self._put, tree)

    def specs_of(self, tree: Any) -> Any:
        """Returns the place of each array of a tree on the mesh: `SAME` for those not on it."""
        return jax.tree.map(self._spec_of, tree)

    def on_all(self, tree: Any) -> Any:
        """Returns a tree of arrays on the mesh: those that are not there yet, on every device.

        For devices that are not in this process, it is a tree of shapes.
        """
        if self.mesh is None:
            return tree

        def put(x: Any) -> Any:
            if self.is_there(x):
                return x
            if isinstance(x, jax.ShapeDtypeStruct) or self._absent:
                return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.everywhere)
            return self._put(x)

        return jax.tree.map(put, tree)

    def abstract(self, tree: Any, specs: Any) -> Any:
        """Returns the shapes of a tree's arrays at their places; `specs` is a prefix of it."""
        if self.mesh is None:
            return tree
        wide = jax.tree.broadcast(specs, tree, is_leaf=lambda x: isinstance(x, PartitionSpec))
        return jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
            tree,
            self.places(wide),
        )

    @property
    def _absent(self) -> bool:
        """Whether programs can be compiled for these devices, but not run."""
        return self.mesh is not None and self.mesh.devices.flat[0] not in jax.devices()

    def _put(self, x: Any) -> jax.Array:
        place = self.everywhere
        assert place is not None
        if place.is_fully_addressable:
            return jax.device_put(x, place)
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return jax.jit(lambda divided: divided, out_shardings=place)(x)
        # Otherwise jax would ask all hosts whether they have the same array.
        value = np.asarray(x)
        return jax.make_array_from_callback(value.shape, place, lambda _: value)

    def is_there(self, x: Any) -> bool:
        """Returns whether an array is on the mesh already."""
        place = getattr(x, "sharding", None)
        return isinstance(place, NamedSharding) and place.mesh == self.mesh

    def _spec_of(self, x: Any) -> PartitionSpec:
        return x.sharding.spec if self.is_there(x) else SAME


ONE = Devices()


def bytes_of_device(tree: Any) -> int:
    """Returns the bytes that each device has of a tree of arrays, or of their shapes."""
    return sum(math.prod(_own_shape(x)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _own_shape(x: Any) -> tuple[int, ...]:
    place = getattr(x, "sharding", None)
    return x.shape if place is None else place.shard_shape(x.shape)


def here(tree: Any) -> Any:
    """Returns the copies on one device of this process of arrays that all devices have.

    A program on them is this process's own; one on the arrays would be that of all hosts.
    """
    return jax.tree.map(lambda x: x.addressable_data(0) if isinstance(x, jax.Array) else x, tree)


def shared_by(number: int, *, ordered_sums: bool = False) -> Devices:
    """Returns the first devices that this process sees, so many that share a model.

    Args:
      number: how many.
      ordered_sums: see `Devices`.

    Raises:
      UserError: there are fewer.
    """
    found = jax.devices()
    if number > len(found):
        there = "one device" if len(found) == 1 else f"{len(found)} devices"
        raise UserError(
            f"tensor_parallel_size={number} needs as many devices, and jax sees {there}; give "
            f"at most {len(found)}"
        )
    if number == 1:
        return ONE
    # All chips of a host in the order of their links, if there is one.
    whole = number == len(found)
    chosen = create_device_mesh((number,), found) if whole else np.asarray(found[:number])
    return Devices(Mesh(chosen, (SHARDS,)), ordered_sums)
