"""8-bit floats with a scale per tensor, row or block, as DeepSeek and Qwen3-FP8 have them."""

from collections.abc import Mapping
from functools import partial

import numpy as np

from emsjax.loading.quantised.config import Fields
from emsjax.loading.quantised.format import Format, Layout, Parts, Shape

DTYPES = frozenset({"F8_E4M3", "F8_E5M2"})
# Scales of activations, which emsjax does not quantise.
IGNORED = ("input_scale", "activation_scale", "output_scale")


def fp8(fields: Fields) -> Format:
    """Returns the format that a `quantization_config` of 8-bit floats describes.

    Raises:
      UserError: the configuration uses something that is not supported.
    """
    block = fields.block("weight_block_size")
    fields.one_of("fmt", ("e4m3", "e5m2", None))
    fields.one_of("expert_dtype", ("fp8", None))
    fields.unread("activation_scheme", "scale_fmt", "kv_cache_scheme", "dequantize")
    # It multiplies, in spite of its name. vLLM calls that of a whole tensor `weight_scale`.
    scale = "weight_scale_inv"
    return Format(
        name="8-bit floats" if block is None else "8-bit floats in blocks",
        marker="weight",
        dtypes=DTYPES,
        needed=(scale,),
        ignored=IGNORED,
        scales=(scale,),
        aliases={scale: "weight_scale"} if block is None else {},
        layout=partial(layout, block, scale),
        dequantised=partial(dequantised, block, scale),
    )


def layout(block: Shape | None, scale: str, shapes: Mapping[str, Shape]) -> Layout:
    """Returns the layout of weights [out, in] with one scale per tensor, row or block."""
    num_out, num_in = shapes["weight"]
    allowed: list[Shape] = [(), (1,), (num_out,), (num_out, 1)]
    if block is not None:
        allowed = [(-(-num_out // block[0]), -(-num_in // block[1]))]
    return Layout((num_out, num_in), {scale: allowed})


def dequantised(block: Shape | None, scale: str, parts: Parts) -> np.ndarray:
    """Returns weights [out, in], each multiplied by the scale of its tensor, row or block."""
    weights, scales = parts["weight"].astype(np.float32), parts[scale].astype(np.float32)
    if block is None:
        weights *= scales.reshape(-1, 1)
        return weights
    # Blocks at the edges may be cut off.
    for first, row in zip(range(0, len(weights), block[0]), scales, strict=True):
        columns = np.repeat(row, block[1])[: weights.shape[1]]
        weights[first : first + block[0]] *= columns
    return weights
