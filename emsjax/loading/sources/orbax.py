"""Reads the parameters of an emsjax checkpoint, mapped from disk one at a time.

Orbax stores each parameter as a zarr array: a folder with one uncompressed chunk. Mapping the
chunks is five times faster than restoring them with orbax, and takes one model's memory instead of
two.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (registers the name "bfloat16" with numpy)
import numpy as np

from emsjax.errors import UserError
from emsjax.loading.hf.config import read_json
from emsjax.loading.sources.int8 import Int8
from emsjax.loading.sources.only_floats import OnlyFloats
from emsjax.pallas_kernels.quantised import SCALE


class OrbaxSource(OnlyFloats):
    """A `TensorSource` whose tensor names are the model's parameter paths."""

    def __init__(self, directory: Path, dtype: str):
        self.name, self.dtype = str(directory), dtype
        self._arrays = {meta.parent.name: _array(meta) for meta in directory.glob("*/.zarray")}
        self.int8 = frozenset(name for name, each in self._arrays.items() if each[1] == np.int8)
        self._scales = {name: name + SCALE for name in self.int8}
        _check_scales(self._arrays, self._scales, self.name)
        self.truncated = frozenset(
            name
            for name, (chunk, dtype, shape) in self._arrays.items()
            if _size(chunk) != math.prod(shape) * dtype.itemsize
        )

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Returns the shape of every parameter; scales belong to the parameters they scale."""
        scales = frozenset(self._scales.values())
        return {name: each[2] for name, each in self._arrays.items() if name not in scales}

    def read(self, name: str) -> np.ndarray:
        """Returns one parameter, mapped read-only unless it is computed from int8."""
        return self.read_int8(name).dequantised() if name in self.int8 else self._mapped(name)

    def read_int8(self, name: str) -> Int8:
        """Returns one of the parameters in `int8`, mapped read-only.

        Raises:
          UserError: a scale is not a finite number.
        """
        scale = self._scales[name]
        found = Int8(self._mapped(name), self._mapped(scale))
        if not np.isfinite(found.scale).all():
            raise UserError(
                f"{scale} in {self.name} holds a scale that is not a finite number; convert the "
                "original model again."
            )
        return found

    def _mapped(self, name: str) -> np.ndarray:
        chunk, dtype, shape = self._arrays[name]
        return np.memmap(chunk, np.uint8, "r").view(dtype).reshape(shape)


def _check_scales(
    arrays: Mapping[str, tuple[Path, np.dtype[Any], tuple[int, ...]]],
    scales: Mapping[str, str],
    origin: str,
) -> None:
    """Checks that every int8 parameter has a float32 scale for each of its rows."""
    wrong = [
        scale
        for name, scale in scales.items()
        if scale not in arrays or arrays[scale][1:] != (np.dtype(np.float32), arrays[name][2][:-1])
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(
            f"{', '.join(sorted(wrong)[:3])}{more} in {origin} must be there, with one float32 per "
            "row of the int8 weights; convert the original model again."
        )


def _size(file: Path) -> int:
    """Returns the file's size in bytes, or -1 if it does not exist."""
    return file.stat().st_size if file.is_file() else -1


def _array(meta: Path) -> tuple[Path, np.dtype[Any], tuple[int, ...]]:
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
    return meta.parent / separator.join("0" * max(len(shape), 1)), dtype, shape
