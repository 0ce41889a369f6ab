"""Reads the parameters of an emsjax checkpoint, mapped from disk one at a time.

Orbax stores each parameter as a zarr array: a folder with one uncompressed chunk. Mapping the
chunks is five times faster than restoring them with orbax, and takes one model's memory instead of
two.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401  (registers the name "bfloat16" with numpy)
import numpy as np

from emsjax.errors import UserError, first_of
from emsjax.loading.hf.config import read_json
from emsjax.loading.sources.int4 import Int4, unpacked
from emsjax.loading.sources.int8 import Int8
from emsjax.loading.sources.only_floats import OnlyFloats
from emsjax.models.groups import Groups
from emsjax.pallas_kernels.quantised import OFFSETS, ORDER, SCALE, SCALES

_FLOAT, _WHOLE = np.dtype(np.float32), np.dtype(np.int32)


class _Array(NamedTuple):
    """A zarr array: its only chunk, and the dtype and shape of its content."""

    chunk: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class OrbaxSource(OnlyFloats):
    """A `TensorSource` whose tensor names are the model's parameter paths."""

    def __init__(self, directory: Path, dtype: str):
        self.name, self.dtype = str(directory), dtype
        self._arrays = {meta.parent.name: _array(meta) for meta in directory.glob("*/.zarray")}
        self.int8 = self._of_dtype(np.int8)
        # Numbers of 4 bits are stored in pairs.
        pairs = self._of_dtype(np.uint8)
        self._companions = {name + SCALE for name in self.int8}
        self._companions |= {name + end for name in pairs for end in (SCALES, OFFSETS, ORDER)}
        self._check(pairs)
        self.truncated = frozenset(
            name
            for name, (chunk, dtype, shape) in self._arrays.items()
            if _size(chunk) != math.prod(shape) * dtype.itemsize
        )
        self._check_orders(pairs)
        self.int4: Mapping[str, Groups] = {name: self._groups(name) for name in pairs}

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Returns the shape of every parameter; scales belong to the parameters they scale."""
        return {name: self._shape(name) for name in self._arrays if name not in self._companions}

    def read(self, name: str) -> np.ndarray:
        """Returns one parameter, mapped read-only unless it is computed from quantised numbers."""
        if name in self.int4:
            ordered = self.int4[name].order is not None
            order = self._mapped(name + ORDER) if ordered else None
            return self.read_int4(name).dequantised(order)
        return self.read_int8(name).dequantised() if name in self.int8 else self._mapped(name)

    def read_int8(self, name: str) -> Int8:
        """Returns one of the parameters in `int8`, mapped read-only.

        Raises:
          UserError: a scale is not a finite number.
        """
        return Int8(self._mapped(name), self._scales(name + SCALE))

    def read_int4(self, name: str) -> Int4:
        """Returns one of the parameters in `int4`.

        Raises:
          UserError: a scale is not a finite number.
        """
        offsets = self._scales(name + OFFSETS).swapaxes(-1, -2) if self.int4[name].offsets else None
        scales = self._scales(name + SCALES).swapaxes(-1, -2)
        return Int4(unpacked(self._mapped(name)), scales, offsets)

    def _of_dtype(self, dtype: Any) -> frozenset[str]:
        return frozenset(name for name, each in self._arrays.items() if each.dtype == dtype)

    def _shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a parameter, whose numbers may be in pairs."""
        _, dtype, shape = self._arrays[name]
        return (*shape[:-1], 2 * shape[-1]) if dtype == np.uint8 and shape else shape

    def _groups(self, name: str) -> Groups:
        size = self._shape(name)[-1] // self._arrays[name + SCALES].shape[-2]
        order = name + ORDER
        there = order in self._arrays and order not in self.truncated
        columns = self._mapped(order).tobytes() if there else None
        return Groups(size, name + OFFSETS in self._arrays, columns)

    def _scales(self, name: str) -> np.ndarray:
        found = self._mapped(name)
        if not np.isfinite(found).all():
            names = sorted(self._companions & self._arrays.keys())
            wrong = [each for each in names if not np.isfinite(self._mapped(each)).all()]
            raise UserError(
                f"{first_of(wrong)} in {self.name}: scales are not finite numbers; convert the "
                "original model again."
            )
        return found

    def _mapped(self, name: str) -> np.ndarray:
        chunk, dtype, shape = self._arrays[name]
        return np.memmap(chunk, np.uint8, "r").view(dtype).reshape(shape)

    def _check(self, pairs: frozenset[str]) -> None:
        """Checks that quantised parameters have what belongs to them."""
        wrong = [each for name in self.int8 for each in self._misfits_of_int8(name)]
        wrong += [each for name in pairs for each in self._misfits_of_int4(name)]
        if wrong:
            raise UserError(
                f"{first_of(sorted(wrong))} in {self.name} must be there, with one number per row "
                "of int8 weights, or per row and group of 4-bit weights; convert the original "
                "model again."
            )

    def _check_orders(self, pairs: frozenset[str]) -> None:
        """Checks that each input has a column of its own."""
        orders = {name + ORDER for name in pairs} & self._arrays.keys() - self.truncated
        wrong = []
        for name in sorted(orders):
            columns = np.sort(self._mapped(name), axis=-1)
            if not (columns == np.arange(columns.shape[-1])).all():
                wrong.append(name)
        if wrong:
            raise UserError(
                f"{first_of(wrong)} in {self.name} must name each input once; convert the original "
                "model again."
            )

    def _misfits_of_int8(self, name: str) -> Iterator[str]:
        if self._kind(name + SCALE) != (_FLOAT, self._arrays[name].shape[:-1]):
            yield name + SCALE

    def _misfits_of_int4(self, name: str) -> Iterator[str]:
        shape, found = self._shape(name), self._arrays.get(name + SCALES)
        if found is None or not len(found.shape) == len(shape) > 1:
            yield name + SCALES
            return
        *stack, num_out, num_in = shape
        groups = found.shape[-2]
        kind = _FLOAT, (*stack, groups, num_out)
        if not groups or num_in % groups or self._kind(name + SCALES) != kind:
            yield name + SCALES
        if self._kind(name + OFFSETS) not in (None, kind):
            yield name + OFFSETS
        if self._kind(name + ORDER) not in (None, (_WHOLE, (*stack, num_in))):
            yield name + ORDER

    def _kind(self, name: str) -> tuple[np.dtype[Any], tuple[int, ...]] | None:
        """Returns an array's dtype and shape, or None if there is none."""
        found = self._arrays.get(name)
        return None if found is None else (found.dtype, found.shape)


def _size(file: Path) -> int:
    """Returns the file's size in bytes, or -1 if it does not exist."""
    return file.stat().st_size if file.is_file() else -1


def _array(meta: Path) -> _Array:
    """Returns the chunk file, dtype and shape of a zarr array."""
    about = read_json(meta)
    try:
        shape, dtype = tuple(about["shape"]), np.dtype(str(about["dtype"]))
        if not all(type(size) is int and 0 <= size < 2**63 for size in shape):
            raise ValueError("its shape is not a list of sizes")
        if dtype.hasobject or not dtype.itemsize or dtype.shape:
            raise ValueError("its dtype is not that of numbers")
    except (KeyError, TypeError, ValueError, OverflowError, SyntaxError) as error:
        raise UserError(
            f"{meta} is damaged ({type(error).__name__}: {error}); convert the original model "
            "again."
        ) from error
    plain = about.get("compressor") is None and not about.get("filters")
    if not plain or list(shape) != about.get("chunks") or about.get("order") != "C":
        raise UserError(
            f"{meta.parent} is compressed or in several chunks, so another program wrote it; "
            "convert the original model with `python -m emsjax.convert`."
        )
    # The only chunk is named after its index: "0" for a vector, "0.0.0" for a stack of matrices.
    separator = "/" if about.get("dimension_separator") == "/" else "."
    chunk = separator.join("0" * max(len(shape), 1))
    return _Array(meta.parent / chunk, dtype, shape)
