"""A short name for a model's content, to see whether two hosts have the same."""

import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from emsjax.engine.devices import here
from emsjax.host.json_text import to_json
from emsjax.loading.opened import OpenedModel

# How many tensors are read in full, and what is looked at of each array of a draft.
_TENSORS, _ELEMENTS = 3, 1 << 14


def fingerprint(models: Sequence[OpenedModel], draft: Any) -> str:
    """Returns a digest of models' configurations, of some of their weights, and of a drafter's.

    Args:
      models: the model, and the draft model if there is one.
      draft: a tree of arrays. Hosts have different parts of those that devices share, which are the
        models'.
    """
    digest = hashlib.sha256()
    for opened in models:
        _add_model(digest, opened)
    for leaf in jax.tree.leaves(draft):
        if not isinstance(leaf, jax.Array) or leaf.is_fully_replicated:
            digest.update(np.ascontiguousarray(np.ravel(here(leaf))[:_ELEMENTS]).tobytes())
    return digest.hexdigest()[:16]


def _add_model(digest: Any, opened: OpenedModel) -> None:
    shapes = {name: list(shape) for name, shape in opened.source.shapes().items()}
    digest.update(to_json([opened.hf_config, shapes], sort_keys=True).encode())
    matrices = sorted(name for name, shape in shapes.items() if len(shape) > 1)
    # The smallest of them, of layers far from each other: a fine-tuned model differs in most.
    small = sorted(matrices, key=lambda name: np.prod(shapes[name]))[: len(matrices) // 2 + 1]
    for name in sorted(small)[:: max(len(small) // _TENSORS, 1)][:_TENSORS]:
        digest.update(np.ascontiguousarray(opened.source.read(name)).tobytes())
