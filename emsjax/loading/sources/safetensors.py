"""Reads tensors of safetensors files, mapped from disk one at a time.

This module parses the header itself, because the `safetensors` package rejects a short file
without naming the tensors that are cut off, and does not support bfloat16 with numpy.
"""

import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from emsjax.errors import UserError
from emsjax.loading.sources.dtypes import own_dtype
from emsjax.loading.sources.only_floats import OnlyFloats
from emsjax.loading.sources.shards import damaged, find_weight_files

_DTYPES: Mapping[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "BOOL": np.bool_,
}


@dataclass(frozen=True)
class _Entry:
    """The place of one tensor: bytes `[start, stop)` of `file`."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    def whole(self, file_size: int) -> bool:
        """Returns whether all of the tensor's bytes are in the file."""
        # The size of an unknown dtype is unknown: `read` rejects it.
        size = math.prod(self.shape) * np.dtype(_DTYPES.get(self.dtype, np.uint8)).itemsize
        return self.stop <= file_size and (
            self.dtype not in _DTYPES or self.stop - self.start == size
        )


class SafetensorsSource(OnlyFloats):
    """A `TensorSource` over one or more safetensors files."""

    def __init__(self, directory: Path, files: Sequence[Path]):
        self.name = str(directory)
        self._entries: dict[str, _Entry] = {}
        truncated = set()
        for file in files:
            entries = dict(_entries(file))
            size = file.stat().st_size
            truncated |= {name for name, entry in entries.items() if not entry.whole(size)}
            self._entries |= entries
        self.truncated = frozenset(truncated)
        self.dtype = own_dtype(entry.dtype for entry in self._entries.values())

    @staticmethod
    def find(directory: Path) -> tuple[Path, ...]:
        """Returns the safetensors files of a Hugging Face directory; empty if it has none."""
        return find_weight_files(directory, "model.safetensors")

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Returns the shape of every tensor, from the headers alone."""
        return {name: entry.shape for name, entry in self._entries.items()}

    def dtypes(self) -> Mapping[str, str]:
        """Returns the type of every tensor, as safetensors names it."""
        return {name: entry.dtype for name, entry in self._entries.items()}

    def read(self, name: str) -> np.ndarray:
        """Returns one tensor, mapped read-only.

        Each read makes a new mapping. A tensor's pages then leave memory together with the array
        instead of adding up to a second copy of the model.

        Raises:
          UserError: numpy has no such dtype.
        """
        entry = self._entries[name]
        if entry.dtype not in _DTYPES:
            raise UserError(
                f"tensor {name} in {entry.file} has dtype {entry.dtype}, which cannot be read; "
                f"use a copy in one of {', '.join(_DTYPES)}."
            )
        if 0 in entry.shape:  # an empty range cannot be mapped
            return np.empty(entry.shape, _DTYPES[entry.dtype])
        raw = np.memmap(entry.file, np.uint8, "r", entry.start, (entry.stop - entry.start,))
        return raw.view(_DTYPES[entry.dtype]).reshape(entry.shape)


def _entries(file: Path) -> Iterator[tuple[str, _Entry]]:
    """Yields the name and place of every tensor in `file`."""
    header, start = _header(file)
    for name, about in header.items():
        if name == "__metadata__":
            continue
        try:
            begin, end = about["data_offsets"]
            shape = tuple(about["shape"])
            sizes = (*shape, begin, end - begin)
            if not all(type(size) is int and 0 <= size < 2**63 for size in sizes):
                raise ValueError("a size is not a whole number")
            entry = _Entry(file, str(about["dtype"]), shape, start + begin, start + end)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise damaged(file, f"its entry for tensor {name} is malformed") from error
        yield name, entry


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """Returns the JSON header, and the offset at which the tensors' bytes begin."""
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 0 < length <= file.stat().st_size - 8:
            raise damaged(file, "it ends within its header")
        try:
            header = json.loads(stream.read(length))
        except (ValueError, RecursionError) as error:
            raise damaged(file, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise damaged(file, "its header is not a JSON object")
    return header, 8 + length
