"""The parts of parameters that devices hold, read from a checkpoint's tensors a part at a time.

The host never holds more than one device's part of one parameter, and the tensors of one layer if
they need more than to be joined.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, SingleDeviceSharding

from emsjax.engine.devices import ONE, SAME, Devices
from emsjax.host.device import put_by_row
from emsjax.models.config import DecoderConfig
from emsjax.models.division import Cut, cut_of
from emsjax.models.family import dotted


@dataclass(frozen=True)
class Part:
    """What one device holds of a parameter.

    Attributes:
      cut: how the parameter is divided; None if the device holds all of it.
      shard: which device it is.
      shards: how many devices there are.
    """

    cut: Cut | None = None
    shard: int = 0
    shards: int = 1

    def shape(self, whole: Sequence[int]) -> tuple[int, ...]:
        """Returns the shape of this part of a parameter of a shape."""
        shape = list(whole)
        if self.cut is not None:
            shape[self.cut.axis] = self.cut.size(self.shards)
        return tuple(shape)

    def of_rows(self, piece: Sequence[int]) -> bool:
        """Returns whether it consists of whole rows of the value of one layer, of this shape."""
        return self.cut is not None and self.cut.axis == -len(piece)

    def copy(self, value: np.ndarray, into: np.ndarray) -> None:
        """Copies this part of the value of one layer; padding becomes zeros."""
        if self.cut is None:
            into[...] = value
            return
        axis = value.ndim + self.cut.axis
        self._fill(lambda there: [np.moveaxis(value, axis, 0)[there]], np.moveaxis(into, axis, 0))

    def copy_rows(self, tensors: Sequence[np.ndarray], into: np.ndarray) -> None:
        """Copies this part of tensors' rows, one tensor's after another's, without joining them."""
        self._fill(lambda there: _rows(tensors, there), into)

    def _fill(self, found: Callable[[slice], Sequence[np.ndarray]], into: np.ndarray) -> None:
        assert self.cut is not None
        place = 0
        for there in self.cut.ranges(self.shard, self.shards):
            for piece in found(there):
                into[place : place + len(piece)] = piece
                place += len(piece)
        into[place:] = 0


WHOLE = Part()


def _rows(tensors: Sequence[np.ndarray], there: slice) -> list[np.ndarray]:
    """Returns the pieces of a range of rows of tensors that lie one after another."""
    found, start = [], 0
    for tensor in tensors:
        first, last = max(there.start - start, 0), min(there.stop - start, len(tensor))
        if first < last:
            found.append(tensor[first:last])
        start += len(tensor)
    return found


@dataclass(frozen=True)
class Division:
    """How devices share a model that is loaded.

    Attributes:
      devices: the devices.
      config: of the whole model; None for what is never divided.
      divided: whether each has its part of the model; if not, all have all of it.
    """

    devices: Devices = ONE
    config: DecoderConfig | None = None
    divided: bool = True

    def parts(self, path: str, shape: Sequence[int]) -> Iterator[Part]:
        """Yields what each device of this process holds; a single part if all hold the same."""
        number = self.devices.number
        if (cut := self.cut(path, shape)) is None:
            yield WHOLE
        else:
            yield from (Part(cut, shard, number) for shard in self.devices.of_this_process)

    def cut(self, path: str, shape: Sequence[int]) -> Cut | None:
        """Returns how a parameter is divided; None if every device holds all of it."""
        number = self.devices.number
        if number == 1 or not self.divided or self.config is None:
            return None
        return cut_of(path, shape, self.config, number)

    def put(self, value: np.ndarray, part: Part) -> jax.Array:
        """Puts a part on its device, or on all devices if it is the whole."""
        mesh = self.devices.mesh
        if mesh is None:
            return put_by_row(value)
        if part.cut is None:
            return self._put_everywhere(value, NamedSharding(mesh, SAME))
        held = put_by_row(value, SingleDeviceSharding(mesh.devices.flat[part.shard]))
        # Otherwise the host would hold parts that are still on their way.
        return jax.block_until_ready(held)

    def _put_everywhere(self, value: np.ndarray, place: NamedSharding) -> jax.Array:
        if place.is_fully_addressable:
            return put_by_row(value, place)
        # jax would compare the array with those of all other processes.
        flat = place.mesh.devices.flat
        here = [SingleDeviceSharding(flat[shard]) for shard in self.devices.of_this_process]
        held = [put_by_row(value, each) for each in here]
        return jax.make_array_from_single_device_arrays(value.shape, place, held)

    def join(self, arrays: Sequence[jax.Array], cut: Cut | None) -> jax.Array:
        """Returns the parameter of which every device of this process holds one of the arrays."""
        if cut is None:
            return arrays[0]
        mesh = self.devices.mesh
        assert mesh is not None
        shape = list(arrays[0].shape)
        shape[cut.axis] *= self.devices.number
        place = NamedSharding(mesh, cut.spec(len(shape)))
        return jax.make_array_from_single_device_arrays(tuple(shape), place, arrays)

    def abstract(self, params: nnx.State) -> nnx.State:
        """Returns the shapes and places of parameters, from the shapes of what one device holds."""
        placed = []
        for path, leaf in nnx.to_flat_state(params):
            held = leaf.get_value()
            cut, shape = self.cut(dotted(path), held.shape), list(held.shape)
            spec = SAME
            if cut is not None:
                shape[cut.axis] *= self.devices.number
                spec = cut.spec(len(shape))
            place = self.devices.places(spec)
            whole = jax.ShapeDtypeStruct(tuple(shape), held.dtype, sharding=place)
            placed.append((path, leaf.replace(whole)))
        return nnx.from_flat_state(placed)
