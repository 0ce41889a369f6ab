"""bitsandbytes' NF4 and FP4 (arXiv 2305.14314): 16 numbers from a table, with a scale per block.

The weights lie row after row, two to a byte, of which the high half comes first. A block is a run
of them, which may begin and end within rows; its scale is its largest number. With double
quantisation the scales are bytes themselves, which choose from a table in the file, with a scale
per block of scales and one common offset.
"""

import json
import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from emsjax.loading.quantised.config import Fields
from emsjax.loading.quantised.format import Format, Layout, Parts, Shape

_NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
# A sign, two bits of exponent and one of fraction, divided by the largest.
_FP4 = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)
_TABLES: Mapping[str, np.ndarray] = {
    "nf4": np.array(_NF4, np.float32),
    "fp4": np.array([*_FP4, *(-each for each in _FP4)], np.float32) / np.float32(12),
}
_SCALES, _CODES = "weight.absmax", "weight.quant_map"
_OUTER, _OUTER_CODES = "weight.nested_absmax", "weight.nested_quant_map"


class _Header(NamedTuple):
    """The description of a module in its file.

    Attributes:
      shape: of the weights, (out, in).
      block: weights that share a scale.
      outer_block: scales that share a scale; 0 if scales are not quantised.
      offset: of scales that are quantised.
    """

    shape: tuple[int, int]
    block: int
    outer_block: int
    offset: float


def four_bits(fields: Fields) -> Format:
    """Returns the format of 4 bits that a `quantization_config` of bitsandbytes describes.

    Raises:
      UserError: the configuration uses something that is not supported.
    """
    kind = fields.one_of("bnb_4bit_quant_type", (*_TABLES, None)) or "fp4"
    double = fields.one_of("bnb_4bit_use_double_quant", (True, False, None)) is True
    fields.one_of("bnb_4bit_quant_storage", ("uint8", None))
    header = f"weight.quant_state.bitsandbytes__{kind}"
    outer = (_OUTER, _OUTER_CODES) if double else ()
    return Format(
        name=f"bitsandbytes {kind}",
        marker="weight",
        dtypes=frozenset({"U8"}),
        needed=(header, _SCALES, *outer),
        # It holds the table, which bitsandbytes does not read either.
        ignored=(_CODES,),
        scales=outer or (_SCALES,),
        header=header,
        layout=partial(_layout, double),
        dequantised=partial(_dequantised, _TABLES[kind], header, double),
    )


def _header(content: np.ndarray, double: bool) -> _Header:
    """Reads the JSON in a tensor of bytes.

    Raises:
      ValueError: it is damaged.
    """
    said = json.loads(content.tobytes())
    if not isinstance(said, dict):
        raise ValueError("it is no object")
    shape, block = said.get("shape"), said.get("blocksize", 0)
    if not (isinstance(shape, list) and len(shape) == 2 and all(map(_size, (*shape, block)))):
        raise ValueError("its sizes are not whole numbers")
    if not double:
        return _Header((shape[0], shape[1]), block, 0, 0.0)
    outer_block, offset = said.get("nested_blocksize", 0), said.get("nested_offset", math.nan)
    if not (_size(outer_block) and isinstance(offset, float) and math.isfinite(offset)):
        raise ValueError("it has no block size and offset of scales")
    return _Header((shape[0], shape[1]), block, outer_block, offset)


def _size(value: Any) -> bool:
    return type(value) is int and value > 0


def _layout(double: bool, shapes: Mapping[str, Shape], content: np.ndarray) -> Layout:
    header = _header(content, double)
    size = -(-math.prod(header.shape) // 2)
    scales = -(-math.prod(header.shape) // header.block)
    parts: dict[str, list[Shape]] = {"weight": [(size, 1), (1, size)], _SCALES: [(scales,)]}
    if double:
        parts |= {_OUTER: [(-(-scales // header.outer_block),)], _OUTER_CODES: [(256,)]}
    return Layout(header.shape, parts)


def _dequantised(table: np.ndarray, header_part: str, double: bool, parts: Parts) -> np.ndarray:
    header = _header(parts[header_part], double)
    scales = parts[_SCALES]
    if double:
        scales = _blocks(parts[_OUTER_CODES][scales], parts[_OUTER], header.outer_block)
        scales += np.float32(header.offset)
    data = parts["weight"].reshape(-1)
    numbers = np.stack([data >> np.uint8(4), data & np.uint8(15)], axis=1).reshape(-1)
    weights = table[numbers[: math.prod(header.shape)]]
    return _blocks(weights, scales, header.block).reshape(header.shape)


def _blocks(values: np.ndarray, scales: np.ndarray, size: int) -> np.ndarray:
    """Multiplies float32[n] with a scale per block, in place; the last block may be shorter."""
    whole = len(values) // size * size
    values[:whole].reshape(-1, size)[...] *= scales[: whole // size, None]
    values[whole:] *= scales[whole // size :]
    return values
