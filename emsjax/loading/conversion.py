"""From a model of any format to one of our checkpoints."""

from pathlib import Path

from emsjax.host.files import check_free
from emsjax.loading.build import read_weights
from emsjax.loading.checkpoint import Manifest, save_checkpoint
from emsjax.loading.dtypes import check_dtype
from emsjax.loading.opened import OpenedModel
from emsjax.loading.weights import Progress


def convert_model(
    opened: OpenedModel, output: Path, dtype: str = "auto", progress: Progress | None = None
) -> None:
    """Writes `opened` as one of our checkpoints, whole or not at all.

    Args:
      opened: the model.
      output: the directory to make; it may exist if empty.
      dtype: of the stored parameters; "auto" keeps the model's own.
      progress: called with (tensors read, tensors in all).

    Raises:
      UserError: a damaged or unsupported model, an unknown dtype, an output that is not empty or
        cannot be written.
    """
    check_free(output)  # before the long work
    stored = opened.source.dtype if check_dtype(dtype) == "auto" else dtype
    tokenizer = opened.tokenizer()
    _, params = read_weights(opened, stored, progress)
    manifest = Manifest(
        model_type=opened.hf_config["model_type"],
        config=opened.hf_config,
        dtype=stored,
        eos_token_ids=opened.eos_token_ids,
        source=opened.name,
    )
    save_checkpoint(output, params, manifest, tokenizer, opened.extra_files)
