"""emsjax checkpoints: orbax parameters, a manifest and the tokenizer in one directory."""

import logging
import shutil
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flax import nnx

from emsjax.errors import UserError
from emsjax.host.files import new_directory
from emsjax.host.json_text import to_json
from emsjax.loading.hf.config import read_json
from emsjax.loading.hf.numbers import check_eos
from emsjax.loading.sources.orbax import OrbaxSource

MANIFEST = "emsjax.json"
_FORMAT = 1
_PARAMS = "params"


@dataclass(frozen=True)
class Manifest:
    """The contents of `emsjax.json`.

    Attributes:
      model_type: the family's Hugging Face `model_type`.
      config: the Hugging Face configuration with every default filled in.
      dtype: dtype of the stored parameters.
      eos_token_ids: end-of-text token ids.
      source: name of the model that was converted.
    """

    model_type: str
    config: dict[str, Any]
    dtype: str
    eos_token_ids: tuple[int, ...]
    source: str


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
        text = to_json({"format": _FORMAT, **asdict(manifest)}, indent=2)
        (partial / MANIFEST).write_text(text + "\n", encoding="utf-8")


def _save_params(directory: Path, params: nnx.State) -> None:
    """Saves with orbax, uncompressed and unsharded so that `OrbaxSource` can map the files."""
    import orbax.checkpoint as ocp

    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False)
    with _quiet(), ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(directory, args=ocp.args.PyTreeSave(nnx.to_pure_dict(params)))


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
    content = read_json(directory / MANIFEST)
    if content.pop("format", None) != _FORMAT:
        raise UserError(
            f"{directory} is in a format this version cannot read; convert the original model "
            "again with `python -m emsjax.convert`."
        )
    try:
        manifest = Manifest(**content)
        _check_manifest(manifest)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{directory / MANIFEST} is damaged ({error}); convert the original model again."
        ) from error
    return manifest, OrbaxSource(directory / _PARAMS, manifest.dtype)


def _check_manifest(manifest: Manifest) -> None:
    """Checks what the loader reads of a manifest, besides the model's configuration."""
    if not isinstance(manifest.config, dict) or not isinstance(manifest.source, str):
        raise ValueError("config is not an object or source is not a name")
    if manifest.config.get("model_type") != manifest.model_type:
        raise ValueError("model_type is not that of config")
    if manifest.dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError("dtype is not one of float32, bfloat16 and float16")
    if not isinstance(manifest.eos_token_ids, list | tuple):
        raise ValueError("eos_token_ids is not a list")
    check_eos({"eos_token_id": manifest.eos_token_ids}, MANIFEST)
