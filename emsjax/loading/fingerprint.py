"""A short name for a model's content, to see whether two hosts have the same."""

import hashlib
from typing import Any

import jax
import numpy as np

from emsjax.engine.devices import here
from emsjax.host.json_text import to_json
from emsjax.loading.opened import OpenedModel

# How many tensors are read in full, and what is looked at of each array of a draft.
_TENSORS, _ELEMENTS = 3, 1 << 14


def fingerprint(opened: OpenedModel, draft: Any) -> str:
    """Returns a digest of a model's configuration, of some of its weights, and of a draft's.

    Args:
      opened: the model.
      draft: a tree of arrays that all devices have.
    """
    digest = hashlib.sha256()
    shapes = {name: list(shape) for name, shape in opened.source.shapes().items()}
    digest.update(to_json([opened.hf_config, shapes], sort_keys=True).encode())
    matrices = sorted(name for name, shape in shapes.items() if len(shape) > 1)
    # The smallest of them, of layers far from each other: a fine-tuned model differs in most.
    small = sorted(matrices, key=lambda name: np.prod(shapes[name]))[: len(matrices) // 2 + 1]
    for name in sorted(small)[:: max(len(small) // _TENSORS, 1)][:_TENSORS]:
        digest.update(np.ascontiguousarray(opened.source.read(name)).tobytes())
    for leaf in jax.tree.leaves(here(draft)):
        digest.update(np.ascontiguousarray(np.ravel(leaf)[:_ELEMENTS]).tobytes())
    return digest.hexdigest()[:16]
