"""Converts a model in any supported format to an emsjax checkpoint."""

from pathlib import Path

import jax
import jax.numpy as jnp

from emsjax.host.device import check_device
from emsjax.host.files import check_free
from emsjax.loading.build import read_weights
from emsjax.loading.checkpoint import save_checkpoint
from emsjax.loading.dtypes import check_dtype, check_quantize
from emsjax.loading.manifest import Manifest
from emsjax.loading.opened import OpenedModel
from emsjax.loading.weights import Progress


def convert_model(
    opened: OpenedModel,
    output: Path,
    dtype: str = "auto",
    progress: Progress | None = None,
    quantize: str | None = None,
) -> None:
    """Writes `opened` as an emsjax checkpoint, atomically.

    Args:
      opened: the model to convert.
      output: target directory; if it exists, it must be empty.
      dtype: dtype of the stored parameters that are not quantised; "auto" keeps the model's own.
      progress: called with (tensors read, total tensors).
      quantize: as for `load_model`, but 4 bits become floats unless it is "int4". int8 stays int8
        unless it is "none".

    Raises:
      UserError: the model is damaged or unsupported, the dtype or `quantize` is unknown, jax has no
        device, or the output is not empty or cannot be written.
    """
    check_free(output)  # fail before the slow part
    check_device()
    stored = opened.source.dtype if check_dtype(dtype) == "auto" else dtype
    tokenizer = opened.tokenizer()
    if check_quantize(quantize) is None and opened.source.int4:
        quantize = "none"
    _, params = read_weights(opened, stored, progress, quantize)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(params)}
    kinds = (kind for kind in ("int4", "int8") if jnp.dtype(kind) in dtypes)
    manifest = Manifest(
        model_type=opened.hf_config["model_type"],
        config=opened.hf_config,
        dtype=stored,
        eos_token_ids=opened.eos_token_ids,
        source=opened.name,
        quantize=next(kinds, None),
    )
    save_checkpoint(output, params, manifest, tokenizer, opened.extra_files)
