"""Reads the parameters of an emsjax checkpoint, mapped from disk one at a time.

Orbax stores each parameter as a zarr array: a folder with one uncompressed chunk. Mapping the
chunks is five times faster than restoring them with orbax, and takes one model's memory instead of
two.
"""

import math
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (registers the name "bfloat16" with numpy)
import numpy as np

from emsjax.errors import UserError, foreign
from emsjax.loading.hf.config import read_json


class OrbaxSource:
    """A `TensorSource` whose tensor names are the model's parameter paths."""

    def __init__(self, directory: Path, dtype: str):
        self.name, self.dtype = str(directory), dtype
        with foreign(f"{directory} is damaged", "convert the original model again."):
            self._arrays = {meta.parent.name: _array(meta) for meta in directory.glob("*/.zarray")}
            self.truncated = frozenset(
                name
                for name, (chunk, dtype, shape) in self._arrays.items()
                if _size(chunk) != math.prod(shape) * dtype.itemsize
            )

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Returns the shape of every parameter."""
        return {name: shape for name, (_, _, shape) in self._arrays.items()}

    def read(self, name: str) -> np.ndarray:
        """Returns one parameter, mapped read-only."""
        chunk, dtype, shape = self._arrays[name]
        with foreign(f"{chunk} is damaged", "convert the original model again."):
            return np.memmap(chunk, np.uint8, "r").view(dtype).reshape(shape)


def _size(file: Path) -> int:
    """Returns the file's size in bytes, or -1 if it does not exist."""
    return file.stat().st_size if file.is_file() else -1


def _array(meta: Path) -> tuple[Path, np.dtype[Any], tuple[int, ...]]:
    """Returns the chunk file, dtype and shape of a zarr array."""
    about = read_json(meta)
    shape = tuple(map(operator.index, about.get("shape", ())))
    if min(shape, default=0) < 0:
        raise ValueError(f"the shape of {meta.parent.name} is {shape}")
    plain = about.get("compressor") is None and not about.get("filters")
    if not plain or list(shape) != about.get("chunks") or about.get("order") != "C":
        raise UserError(
            f"{meta.parent} is compressed or in several chunks, so another program wrote it; "
            "convert the original model with `python -m emsjax.convert`."
        )
    # The only chunk is named after its index: "0" for a vector, "0.0.0" for a stack of matrices.
    separator = about.get("dimension_separator", ".")
    return meta.parent / separator.join("0" * max(len(shape), 1)), np.dtype(about["dtype"]), shape
