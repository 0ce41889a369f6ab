"""bitsandbytes: LLM.int8 (arXiv 2208.07339), int8 with the largest number of a row; or 4 bits."""

from collections.abc import Mapping

import numpy as np

from emsjax.loading.quantised.bitsandbytes_4bit import four_bits
from emsjax.loading.quantised.config import Fields
from emsjax.loading.quantised.format import Format, Layout, Parts, Shape
from emsjax.loading.sources.int8 import Int8

_LARGEST = np.float32(1 / 127)


def bitsandbytes(fields: Fields) -> Format:
    """Returns the format that a `quantization_config` of bitsandbytes describes.

    Raises:
      UserError: the configuration uses something that is not supported.
    """
    four = fields.one_of("load_in_4bit", (True, False, None)) is True
    fields.one_of("load_in_8bit", (False, None) if four else (True,))
    # They concern the activations.
    fields.unread("_load_in_4bit", "_load_in_8bit", "llm_int8_threshold", "llm_int8_skip_modules")
    fields.unread("llm_int8_enable_fp32_cpu_offload", "llm_int8_has_fp16_weight")
    fields.unread("bnb_4bit_compute_dtype")
    if four:
        return four_bits(fields)
    fields.unread("bnb_4bit_quant_storage", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant")
    return Format(
        name="bitsandbytes int8",
        marker="weight",
        dtypes=frozenset({"I8"}),
        needed=("SCB",),
        ignored=("weight_format",),
        fixed={"weight_format": 0},  # others are tiles in the order of a GPU's kernels
        scales=("SCB",),
        layout=_layout,
        dequantised=lambda parts: _kept(parts).dequantised(),
        int8=_kept,
    )


def _layout(shapes: Mapping[str, Shape]) -> Layout:
    num_out, num_in = shapes["weight"]
    return Layout((num_out, num_in), {"SCB": [(num_out,)]})


def _kept(parts: Parts) -> Int8:
    return Int8(parts["weight"], parts["SCB"].astype(np.float32) * _LARGEST)
