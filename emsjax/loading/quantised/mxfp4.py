"""MXFP4, the format of gpt-oss' experts: floats of 4 bits, 32 to a scale that is a power of two."""

import functools
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from emsjax.loading.quantised.config import Fields
from emsjax.loading.quantised.format import Format, Layout, Parts, Shape

# The numbers of 4 bits without their sign, which is the highest bit.
_NUMBERS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_BIAS = 127  # what a scale's exponent is stored above
_NO_NUMBER = 255  # the scale that stands for NaN
_BYTES = 16  # of a group, two numbers each


def mxfp4(fields: Fields) -> Format:
    """Returns the format that a `quantization_config` of MXFP4 describes."""
    fields.unread("dequantize")
    return Format(
        name="MXFP4",
        marker="blocks",
        dtypes=frozenset({"U8"}),
        needed=("scales",),
        undefined={"scales": _NO_NUMBER},
        layout=_layout,
        dequantised=_dequantised,
        joint="_",
        weight="",
    )


def _layout(shapes: Mapping[str, Shape]) -> Layout:
    """Returns [E, in, out]; the tensors are the other way round, [E, out, groups, bytes]."""
    experts, num_out, groups, size = shapes["blocks"]
    if size != _BYTES:
        raise ValueError("a group has another size")
    return Layout((experts, 2 * size * groups, num_out), {"scales": [(experts, num_out, groups)]})


def _dequantised(parts: Parts) -> np.ndarray:
    """Returns bfloat16[E, in, out], which holds every number exactly."""
    blocks, scales = parts["blocks"], parts["scales"]
    pairs = np.empty(blocks.shape, np.uint32)
    # Expert by expert, because the places in the table take as much memory as the numbers. Looking
    # them up by one number of 16 bits is five times as fast as by two.
    for expert, (codes, exponents) in enumerate(zip(blocks, scales, strict=True)):
        places = exponents.astype(np.uint16)[..., None] << 8 | codes
        np.take(_pairs(), places, out=pairs[expert], mode="clip")
    # The first number of a pair, from the byte's low bits, is the one in the word's low half.
    numbers = pairs.astype("<u4", copy=False).view("<u2").view(ml_dtypes.bfloat16)
    return numbers.reshape(*blocks.shape[:2], -1).swapaxes(1, 2)


@functools.cache
def _pairs() -> np.ndarray:
    """Returns the two bfloat16 numbers of every scale and byte in a word, uint32[256 * 256]."""
    signed = np.array([*_NUMBERS, *(-number for number in _NUMBERS)], np.float32)
    exponents = np.arange(256) - _BIAS
    with np.errstate(over="ignore"):  # as in `transformers`, the largest are infinite
        each = np.ldexp(signed[None], exponents[:, None]).astype(np.float32)
    bits = each.astype(ml_dtypes.bfloat16).view(np.uint16).astype(np.uint32)
    codes = np.arange(256)
    return (bits[:, codes & 15] | bits[:, codes >> 4] << 16).reshape(-1)
