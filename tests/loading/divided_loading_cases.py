"""Cases for `test_divided.py`: every format is loaded one device's part of one parameter at a time.

On a CPU, devices have the host's memory, so what waits on the host is counted instead.
"""

import weakref
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tiny_checkpoints import write_gguf

from emsjax.engine.devices import shared_by
from emsjax.loading import weights as reading
from emsjax.loading.build import read_weights
from emsjax.loading.conversion import convert_model
from emsjax.loading.families import supported
from emsjax.loading.opened import OpenedModel, open_model
from emsjax.loading.parts import Division, Part

pytestmark = pytest.mark.usefixtures("real_models")
# The tensors of one layer that the parameter with most of them is made of, gate and up.
LAYER_BYTES = 2 * 96 * 64 * 4


class Waiting:
    """Counts the bytes on the host that are on their way from a file to a device."""

    def __init__(self, opened: OpenedModel, monkeypatch: pytest.MonkeyPatch):
        self.now = self.most = 0
        self._parts: dict[int, int] = {}
        allocate, put, read = reading.aligned_empty, Division.put, opened.source.read

        def aligned_empty(*arguments: Any) -> np.ndarray:
            array = allocate(*arguments)
            self._parts[id(array)] = array.nbytes
            self._add(array.nbytes)
            # Only one of equal scales is put, for all devices.
            weakref.finalize(array, self._placed, id(array))
            return array

        def put_part(division: Division, value: np.ndarray, part: Part) -> jax.Array:
            found = put(division, value, part)
            self._placed(id(value))
            return found

        def read_tensor(name: str) -> np.ndarray:
            array = read(name)
            if array.flags.writeable:  # others are mapped files
                self._add(array.nbytes)
                weakref.finalize(array, self._add, -array.nbytes)
            return array

        monkeypatch.setattr(reading, "aligned_empty", aligned_empty)
        monkeypatch.setattr(Division, "put", put_part)
        monkeypatch.setattr(opened.source, "read", read_tensor)

    def _placed(self, part: int) -> None:
        self._add(-self._parts.pop(part, 0))

    def _add(self, nbytes: int) -> None:
        self.now += nbytes
        self.most = max(self.most, self.now)


def opened_as(form: str, directory: Path, weights: dict[str, np.ndarray]) -> OpenedModel:
    if form == "gguf":
        return open_model(write_gguf(directory.parent / "m.gguf", weights), supported())
    opened = open_model(directory, supported())
    if form == "orbax":
        convert_model(opened, directory.parent / "converted")
        return open_model(directory.parent / "converted", supported())
    return opened


@pytest.mark.parametrize("quantize", [None, "int8"])
@pytest.mark.parametrize("form", ["safetensors", "gguf", "orbax"])
def test_the_host_holds_one_part_of_one_parameter(
    form: str,
    quantize: str | None,
    hf_dir: Path,
    weights: dict[str, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
):
    """And what is dequantised of a layer for it."""
    devices = shared_by(4)
    expected = jax.tree.leaves(
        read_weights(open_model(hf_dir, supported()), "float32", None, quantize, devices)[1]
    )
    opened = opened_as(form, hf_dir, weights)
    waiting = Waiting(opened, monkeypatch)
    found = jax.tree.leaves(read_weights(opened, "float32", None, quantize, devices)[1])
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.sharding == theirs.sharding
        np.testing.assert_array_equal(ours, theirs)
    largest = max(each.addressable_shards[0].data.nbytes for each in found)
    assert any(each.nbytes > 3 * largest for each in found)
    computed = form == "gguf" or quantize == "int8"
    # A row of 64 numbers in int8 has a scale of 4 bytes.
    least = largest + (largest // 16 if quantize == "int8" else 0)
    assert largest <= waiting.most <= least + (LAYER_BYTES if computed else 0)
