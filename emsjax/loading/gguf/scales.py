"""Where the blocks of GGUF's types hold the 16-bit floats that scale them."""

from collections.abc import Mapping
from types import MappingProxyType

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

# The bytes of each block; types that are not here have others, or are not quantised.
_PLACES: Mapping[Kind, slice] = MappingProxyType(
    {
        **dict.fromkeys((Kind.Q4_0, Kind.Q5_0, Kind.Q8_0, Kind.IQ4_NL, Kind.IQ4_XS), slice(2)),
        **dict.fromkeys((Kind.Q4_1, Kind.Q5_1, Kind.Q4_K, Kind.Q5_K), slice(4)),
        **{Kind.Q2_K: slice(80, 84), Kind.Q3_K: slice(108, 110), Kind.Q6_K: slice(208, 210)},
    }
)


def are_finite(data: np.ndarray, kind: Kind) -> bool:
    """Returns whether all scales of rows are numbers.

    Args:
      data: uint8[..., bytes of a row] if the type is quantised.
      kind: the type.
    """
    if kind not in _PLACES:
        return True
    _, nbytes = gguf.GGML_QUANT_SIZES[kind]
    scales = np.ascontiguousarray(data.reshape(-1, nbytes)[:, _PLACES[kind]])
    return bool(np.isfinite(scales.view("<f2")).all())
