"""Our own checkpoints: orbax parameters, with configuration and tokenizer beside them."""

import json
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
from emsjax.loading.hf.config import read_json
from emsjax.loading.sources.orbax import OrbaxSource

MANIFEST = "emsjax.json"
_FORMAT = 1
_PARAMS = "params"


@dataclass(frozen=True)
class Manifest:
    """What `emsjax.json` says.

    Attributes:
      model_type: Hugging Face's name of the family.
      config: the Hugging Face configuration, every default filled in.
      dtype: of the stored parameters.
      eos_token_ids: tokens that end a text.
      source: the name of the model this was converted from.
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
    """Writes a checkpoint, whole or not at all.

    Args:
      directory: where; it may exist if empty.
      params: parameters on one device.
      manifest: describes them.
      tokenizer: saved beside them unless None.
      copy_files: small files to keep beside them, e.g. `generation_config.json`.

    Raises:
      UserError: `directory` is not empty or cannot be written.
    """
    with new_directory(directory) as partial:
        _save_params(partial / _PARAMS, params)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        for file in copy_files:
            shutil.copy(file, partial)
        text = json.dumps({"format": _FORMAT, **asdict(manifest)}, indent=2)
        (partial / MANIFEST).write_text(text + "\n", encoding="utf-8")


def _save_params(directory: Path, params: nnx.State) -> None:
    """Saves through orbax, uncompressed and unsharded so that `OrbaxSource` can map the files."""
    import orbax.checkpoint as ocp

    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False)
    with _quiet(), ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(directory, args=ocp.args.PyTreeSave(nnx.to_pure_dict(params)))


@contextmanager
def _quiet():  # type: ignore[no-untyped-def]
    """Keeps orbax's asides off standard error: it warns that there is no OCDBT to merge."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def open_checkpoint(directory: Path) -> tuple[Manifest, OrbaxSource]:
    """The description and the parameters of a checkpoint, none of them read yet.

    Raises:
      UserError: the checkpoint is damaged, or from a newer version.
    """
    content = read_json(directory / MANIFEST)
    if content.pop("format", None) != _FORMAT:
        raise UserError(
            f"{directory} is in a format this version cannot read; convert the original model "
            "again with `python -m emsjax.convert`."
        )
    try:
        manifest = Manifest(**content)
    except TypeError as error:
        raise UserError(
            f"{directory / MANIFEST} is damaged ({error}); convert the original model again."
        ) from error
    return manifest, OrbaxSource(directory / _PARAMS, manifest.dtype)
