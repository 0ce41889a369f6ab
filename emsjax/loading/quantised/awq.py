"""AWQ in the layout of AutoAWQ's GEMM kernel (arXiv 2306.00978).

Eight numbers of 4 bits lie in an int32 word, along the outputs and in an order of their own. A
weight is `(number - zero) * scale`.
"""

from collections.abc import Mapping
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
    groups_of,
    unpacked,
)

# The column of each field of a word, lowest bits first.
_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)
_PLACES = np.argsort(_COLUMNS)


def awq(fields: Fields) -> Format:
    """Returns the format that a `quantization_config` of AWQ describes.

    Raises:
      UserError: the configuration uses something that is not supported.
    """
    fields.one_of("bits" if fields.get("w_bit") is None else "w_bit", (4,))
    old = fields.get("q_group_size") is not None
    size = fields.group_size("q_group_size" if old else "group_size")
    for name in ("version", "format"):
        fields.one_of(name, ("gemm", "GEMM", None))
    fields.one_of("zero_point", (True, None))
    fields.unread("do_fuse", "modules_to_fuse", "fuse_max_seq_len")
    # transformers describes AWQ in the terms of GPTQ too, with values that mean nothing here.
    fields.unread("desc_act", "sym")
    return Format(
        name="4-bit AWQ",
        marker="qweight",
        dtypes=frozenset({"I32"}),
        needed=("qzeros", "scales"),
        scales=("scales",),
        layout=partial(_layout, size),
        dequantised=lambda parts: _numbers(parts).dequantised(size),
        int4=Grid(
            groups=lambda shapes, dtypes, _: groups_of(
                size, True, shapes["qweight"][0], dtypes["scales"], None
            ),
            numbers=lambda parts, offsets: _numbers(parts).int4(8, offsets),
        ),
    )


def _layout(size: int | None, shapes: Mapping[str, Shape]) -> Layout:
    num_in, words = shapes["qweight"]
    groups = -(-num_in // (size or num_in))
    return Layout(
        (8 * words, num_in), {"qzeros": [(groups, words)], "scales": [(groups, 8 * words)]}
    )


def _in_order(words: np.ndarray) -> np.ndarray:
    """Unpacks int32[rows, words] to uint8[rows, 8 * words], with columns in their order."""
    fields = unpacked(words, 4).reshape(*words.shape, 8)
    return fields[..., _PLACES].reshape(len(words), -1)


def _numbers(parts: Parts) -> Numbers:
    return Numbers(
        np.ascontiguousarray(_in_order(parts["qweight"]).T),
        parts["scales"].astype(np.float32).T,
        _in_order(parts["qzeros"]).T,
    )
