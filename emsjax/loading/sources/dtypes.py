"""Determines which dtype counts as a checkpoint's own."""

from collections import Counter
from collections.abc import Iterable

# Names of the 16-bit types in safetensors and GGUF files, and in PyTorch and numpy.
_HALVES = {"BF16": "bfloat16", "F16": "float16", "bfloat16": "bfloat16", "float16": "float16"}


def own_dtype(stored: Iterable[str]) -> str:
    """Returns the dtype that most tensors have: "bfloat16", "float16" or "float32".

    Args:
      stored: the dtype of each tensor, as its file format names it. Every dtype that is not a
        16-bit float counts as "float32".
    """
    counts = Counter(_HALVES.get(dtype, "float32") for dtype in stored)
    return counts.most_common(1)[0][0] if counts else "float32"
