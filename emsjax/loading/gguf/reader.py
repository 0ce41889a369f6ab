"""A faster version of the `gguf` package's reader, with better diagnosis of short files."""

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGUFValueType

_ARRAY_HEADER = struct.Struct("<IQ")  # type of the items, number of them
_KINDS = frozenset(map(int, gguf.GGMLQuantizationType))
_LENGTH = struct.Struct("<Q")


class GgufReader(gguf.GGUFReader):
    """Reads metadata and finds tensors.

    Attributes:
      truncated: name and shape of each tensor whose data is incomplete. The package's own reader
        fails at the first of them without naming it.
    """

    tensors: list[Any]

    def __init__(self, path: Path):
        self.truncated: list[tuple[str, tuple[int, ...]]] = []
        super().__init__(path)

    def _build_tensors(self, start_offs: int, fields: list[Any]) -> None:
        whole: list[Any] = []
        for field in fields:
            try:
                super()._build_tensors(start_offs, [field])
            except ValueError:
                # The package raises ValueError for an unknown quantisation, too.
                if field.parts[4][0] not in _KINDS:
                    raise
                shape = tuple(field.parts[3].tolist()[::-1])
                self.truncated.append((field.name, shape))
            else:
                whole += self.tensors
        self.tensors = whole

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[Any], Any, Any]:
        """Reads an array at once, while the package makes four memory maps for every item."""
        if raw_type != GGUFValueType.ARRAY or self.byte_order != "I":
            return super()._get_field_parts(orig_offs, raw_type)
        kind, count = _ARRAY_HEADER.unpack_from(self.data, orig_offs)
        start = orig_offs + _ARRAY_HEADER.size
        if kind == GGUFValueType.STRING:
            parts, stop = _strings(memoryview(self.data), start, count)
        elif kind in self.gguf_scalar_to_np:
            parts = [np.frombuffer(self.data, self.gguf_scalar_to_np[kind], count, start)]
            stop = start + parts[0].nbytes
        else:
            return super()._get_field_parts(orig_offs, raw_type)
        types = [GGUFValueType.ARRAY, GGUFValueType(kind)]
        return stop - orig_offs, parts, range(len(parts)), types


def _strings(data: memoryview, start: int, count: int) -> tuple[list[Any], int]:
    """Returns the bytes of `count` strings that begin at `start`, and the offset after them."""
    found = []
    for _ in range(count):
        (length,) = _LENGTH.unpack_from(data, start)
        start += _LENGTH.size
        found.append(data[start : start + length])
        start += length
    if start > len(data):
        raise ValueError("it ends within a list of strings")
    return found, start
