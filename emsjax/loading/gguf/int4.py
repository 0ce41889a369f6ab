"""GGUF's types of 4 bits that are kept: groups of 32 inputs, each with a scale and a minimum.

A weight is `number * scale + minimum`, with numbers from 0 to 15. Q4_0 has no minima; 8 stands for
0. Q4_K has scales and minima of 6 bits, 8 of each in a block, whose own scales are floats.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from gguf import GGMLQuantizationType as Kind

from emsjax.loading.sources.int4 import Int4
from emsjax.models.groups import Groups

_SIZE = 32  # inputs of a group
_MIDDLE = 8  # the number that becomes 0


class _Numbers(NamedTuple):
    """What blocks hold.

    Attributes:
      numbers: uint8[..., groups, 32].
      scales: float32[..., groups].
      minima: float32[..., groups]; None for -8 times the scales.
    """

    numbers: np.ndarray
    scales: np.ndarray
    minima: np.ndarray | None = None


def _q4_0(blocks: np.ndarray) -> _Numbers:
    return _Numbers(_numbers(blocks[..., 2:]), _floats(blocks[..., :2]))


def _q4_1(blocks: np.ndarray) -> _Numbers:
    scales, minima = _floats(blocks[..., :2]), _floats(blocks[..., 2:4])
    return _Numbers(_numbers(blocks[..., 4:]), scales, minima)


def _q4_k(blocks: np.ndarray) -> _Numbers:
    scale, minimum = _floats(blocks[..., :2]), _floats(blocks[..., 2:4])
    # The high bits of the last 4 scales and minima are next to the first 4.
    first, second, last = np.split(blocks[..., 4:16], 3, axis=-1)
    scales = np.concatenate([first & 63, (last & 15) | ((first >> 2) & 48)], axis=-1)
    minima = np.concatenate([second & 63, (last >> 4) | ((second >> 2) & 48)], axis=-1)
    numbers = _numbers(blocks[..., 16:].reshape(*blocks.shape[:-1], 4, _SIZE))
    return _Numbers(
        numbers.reshape(*blocks.shape[:-1], 8, _SIZE), scale * scales, -minimum * minima
    )


class _Layout(NamedTuple):
    """A block's bytes, whether its groups have minima, and what reads uint8[..., bytes]."""

    nbytes: int
    minima: bool
    read: Callable[[np.ndarray], _Numbers]


_LAYOUTS = {
    Kind.Q4_0: _Layout(18, False, _q4_0),
    Kind.Q4_1: _Layout(20, True, _q4_1),
    Kind.Q4_K: _Layout(144, True, _q4_k),
}
# The types, and the groups of their weights.
KEPT: Mapping[Kind, Groups] = MappingProxyType(
    {kind: Groups(_SIZE, layout.minima) for kind, layout in _LAYOUTS.items()}
)


def read_int4(data: np.ndarray, kind: Kind) -> Int4:
    """Returns weights of 4 bits with offsets for minima.

    An offset is exact unless a block's scale and minimum are of very different sizes (more than
    about 16 times). Then float32 rounds it, as it rounds weights.

    Args:
      data: uint8[out, bytes of a row].
      kind: one of `KEPT`.
    """
    layout = _LAYOUTS[kind]
    found = layout.read(data.reshape(len(data), -1, layout.nbytes))
    values = found.numbers.reshape(len(data), -1).view(np.int8) - np.int8(_MIDDLE)
    scales = found.scales.reshape(len(data), -1)
    if found.minima is None:
        return Int4(values, scales)
    return Int4(values, scales, found.minima.reshape(scales.shape) + np.float32(_MIDDLE) * scales)


def _floats(halves: np.ndarray) -> np.ndarray:
    """Returns float32[..., n] of the bytes of 16-bit floats, uint8[..., 2 n]."""
    return np.ascontiguousarray(halves).view("<f2").astype(np.float32)


def _numbers(pairs: np.ndarray) -> np.ndarray:
    """Unpacks uint8[..., n] to uint8[..., 1 or more, 32]: all low numbers, then all high ones."""
    return np.stack([pairs & 15, pairs >> 4], axis=-2).reshape(*pairs.shape[:-1], -1, _SIZE)
