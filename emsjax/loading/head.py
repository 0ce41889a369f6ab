"""Decides by a checkpoint's tensors whether its output head is the token embedding."""

from typing import Any

import numpy as np

from emsjax.loading.families import family, model_config
from emsjax.loading.parameters import stored_head
from emsjax.loading.sources.source import TensorSource

_ROWS = 2048  # rows to compare at a time


def as_stored(hf_config: dict[str, Any], source: TensorSource) -> dict[str, Any]:
    """Returns the configuration, untied if the checkpoint holds a head that is not the embedding.

    Some fine-tuned models keep the label `tie_word_embeddings` although training changed only one
    of the two. `transformers` believes the tensors too.

    Args:
      hf_config: a Hugging Face configuration.
      source: its checkpoint. Two of its tensors are read if it is labelled tied and holds both.

    Raises:
      UserError: the configuration is unsupported, or one of the two tensors cannot be read.
    """
    if not hf_config.get("tie_word_embeddings"):
        return hf_config
    weight_map = family(hf_config).weights(model_config(hf_config))
    held = stored_head(source, weight_map)
    if held is None or _equal(*map(source.read, held)):
        return hf_config
    return hf_config | {"tie_word_embeddings": False}


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    """Returns whether two matrices are equal; values of other dtypes are compared as float32."""
    if one.shape != other.shape:
        return False
    pieces = (
        (one[row : row + _ROWS], other[row : row + _ROWS]) for row in range(0, len(one), _ROWS)
    )
    return all(np.array_equal(a.astype(np.float32), b.astype(np.float32)) for a, b in pieces)
