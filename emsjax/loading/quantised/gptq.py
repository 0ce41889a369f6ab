"""GPTQ, as written by AutoGPTQ and GPTQModel (arXiv 2210.17323).

Numbers of `bits` bits lie in int32 words, lowest bits first: those of `qweight` [in / n, out] along
the inputs, those of `qzeros` [groups, out / n] along the outputs. A weight is
`(number - zero) * scale`.
"""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from emsjax.loading.quantised.config import Fields
from emsjax.loading.quantised.format import (
    Format,
    Grid,
    Layout,
    Numbers,
    Parts,
    Shape,
    filled_in,
    groups_of,
    unpacked,
)
from emsjax.models.groups import Groups

_BITS = (2, 4, 8)


def gptq(fields: Fields) -> Format:
    """Returns the format that a `quantization_config` of GPTQ describes.

    Raises:
      UserError: the configuration uses something that is not supported.
    """
    bits = fields.one_of("bits", _BITS)
    size = fields.group_size("group_size")
    fields.one_of("pack_dtype", ("int32", None))
    fields.no_overrides("dynamic")
    versions = [
        fields.one_of(name, ("gptq", "gptq_v2", None)) for name in ("checkpoint_format", "format")
    ]
    symmetric = fields.one_of("sym", (True, False, None)) is not False
    ordered = fields.one_of("desc_act", (True, False, None)) is True and size is not None
    numbers = partial(_numbers, bits, "gptq_v2" in versions, symmetric)
    return Format(
        name=f"{bits}-bit GPTQ",
        marker="qweight",
        dtypes=frozenset({"I32"}),
        # Without it, columns in the order of their activations would get each other's scales.
        needed=("qzeros", "scales", "g_idx") if ordered else ("qzeros", "scales"),
        optional=() if ordered else ("g_idx",),
        scales=("scales",),
        group_of="g_idx",
        layout=partial(_layout, 32 // bits, size),
        dequantised=lambda parts: numbers(parts).dequantised(size),
        int4=Grid(
            groups=partial(_groups, size, "gptq_v2" in versions, symmetric),
            numbers=lambda parts, offsets: numbers(parts).int4(8, offsets),
        )
        if bits == 4
        else None,
    )


def _layout(packed: int, size: int | None, shapes: Mapping[str, Shape]) -> Layout:
    words, num_out = shapes["qweight"]
    num_in = words * packed
    groups = -(-num_in // (size or num_in))
    return Layout(
        (num_out, num_in),
        {
            "qzeros": [(groups, -(-num_out // packed))],
            "scales": [(groups, num_out)],
            "g_idx": [(num_in,)],
        },
        groups,
    )


def _groups(
    size: int | None,
    second: bool,
    symmetric: bool,
    shapes: Mapping[str, Shape],
    dtypes: Mapping[str, str],
    read: Callable[[str], np.ndarray],
) -> Groups | None:
    num_in, num_out = 8 * shapes["qweight"][0], shapes["qweight"][1]
    zeros = _zeros(4, second, symmetric, read("qzeros"), num_out) if symmetric else None
    offsets = zeros is None or bool((zeros != 8).any())
    group_of = filled_in(read("g_idx")) if "g_idx" in shapes else None
    return groups_of(size, offsets, num_in, dtypes["scales"], group_of)


def _numbers(bits: int, second: bool, symmetric: bool, parts: Parts) -> Numbers:
    num_out = parts["qweight"].shape[1]
    return Numbers(
        unpacked(parts["qweight"].T, bits),
        parts["scales"].astype(np.float32).T,
        _zeros(bits, second, symmetric, parts["qzeros"], num_out).T,
        filled_in(parts.get("g_idx")),
    )


def _zeros(bits: int, second: bool, symmetric: bool, words: np.ndarray, num_out: int) -> np.ndarray:
    """Unpacks zeros uint8[groups, out], of which the last word may hold fewer."""
    zeros = unpacked(words, bits)[:, :num_out]
    middle = 2 ** (bits - 1)
    # The first version stores one less than the zero. Some newer files that call themselves the
    # first version do not, which shows if zeros must be the middle.
    if not second and not (symmetric and (zeros == middle).all()):
        zeros = unpacked(_one_more(words, bits), bits)[:, :num_out]
    return zeros


def _one_more(words: np.ndarray, bits: int) -> np.ndarray:
    """Adds 1 to each number in int32 words.

    GPTQModel subtracts it from whole words, and a number of 0 borrows from the next one. So it is
    added to whole words as well.
    """
    ones = sum(1 << shift for shift in range(0, 32, bits))
    return (words.astype(np.int32).view(np.uint32) + np.uint32(ones)).view(np.int32)
