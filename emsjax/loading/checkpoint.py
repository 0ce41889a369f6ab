"""emsjax checkpoints: orbax parameters, a manifest and the tokenizer in one directory."""

import logging
import shutil
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from emsjax.host.files import new_directory
from emsjax.host.json_text import to_json
from emsjax.loading.manifest import MANIFEST, Manifest, read_manifest
from emsjax.loading.sources.int4 import packed
from emsjax.loading.sources.orbax import OrbaxSource

_PARAMS = "params"


def save_checkpoint(
    directory: Path,
    params: nnx.State,
    manifest: Manifest,
    tokenizer: Any = None,
    copy_files: Sequence[Path] = (),
) -> None:
    """Writes a checkpoint atomically: `directory` is complete or does not appear.

    Args:
      directory: target directory; if it exists, it must be empty.
      params: parameters, all on one device.
      manifest: description of the model.
      tokenizer: tokenizer to save in the same directory, or None.
      copy_files: small files to copy into the directory, e.g. `generation_config.json`.

    Raises:
      UserError: `directory` is not empty or cannot be written.
    """
    with new_directory(directory) as partial:
        _save_params(partial / _PARAMS, params)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        for file in copy_files:
            shutil.copy(file, partial)
        fields = {name: value for name, value in asdict(manifest).items() if value is not None}
        text = to_json({"format": manifest.format, **fields}, indent=2)
        (partial / MANIFEST).write_text(text + "\n", encoding="utf-8")


def _save_params(directory: Path, params: nnx.State) -> None:
    """Saves with orbax, uncompressed and unsharded so that `OrbaxSource` can map the files.

    Weights in 4 bits are stored two to a byte.
    """
    import orbax.checkpoint as ocp

    def stored(leaf: jax.Array) -> Any:
        return packed(np.asarray(leaf)) if leaf.dtype == jnp.int4 else leaf

    content = jax.tree.map(stored, nnx.to_pure_dict(params))
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False)
    with _quiet(), ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(directory, args=ocp.args.PyTreeSave(content))


@contextmanager
def _quiet():  # type: ignore[no-untyped-def]
    """Hides orbax's warning that there is no OCDBT data to merge, which is intended here."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def open_checkpoint(directory: Path) -> tuple[Manifest, OrbaxSource]:
    """Opens a checkpoint without reading its parameters.

    Returns:
      The manifest, and a source for the parameters.

    Raises:
      UserError: the checkpoint is damaged or was written by a newer version.
    """
    manifest = read_manifest(directory)
    return manifest, OrbaxSource(directory / _PARAMS, manifest.dtype)
