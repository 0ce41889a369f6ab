"""The manifest of an emsjax checkpoint: what the model is, without its parameters."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emsjax.errors import UserError
from emsjax.loading.hf.config import read_json
from emsjax.loading.hf.numbers import check_eos

MANIFEST = "emsjax.json"
# 2 has weights in int8, and 3 in 4 bits, which versions that know less cannot read.
_FORMAT_OF = {None: 1, "int8": 2, "int4": 3}
FORMATS = tuple(_FORMAT_OF.values())


@dataclass(frozen=True)
class Manifest:
    """The contents of `emsjax.json`.

    Attributes:
      model_type: the family's Hugging Face `model_type`.
      config: the Hugging Face configuration with every default filled in.
      dtype: dtype of the stored parameters that are not quantised.
      eos_token_ids: end-of-text token ids.
      source: name of the model that was converted.
      quantize: "int8" or "int4" if weights are quantised, otherwise None.
    """

    model_type: str
    config: dict[str, Any]
    dtype: str
    eos_token_ids: tuple[int, ...]
    source: str
    quantize: str | None = None

    @property
    def format(self) -> int:
        """The oldest format that can hold the checkpoint."""
        return _FORMAT_OF[self.quantize]


def read_manifest(directory: Path) -> Manifest:
    """Reads the manifest of a checkpoint.

    Raises:
      UserError: it is damaged or was written by a newer version.
    """
    content = read_json(directory / MANIFEST)
    if content.pop("format", None) not in FORMATS:
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
    return manifest


def _check_manifest(manifest: Manifest) -> None:
    """Checks what the loader reads of a manifest, besides the model's configuration."""
    if not isinstance(manifest.config, dict) or not isinstance(manifest.source, str):
        raise ValueError("config is not an object or source is not a name")
    if manifest.config.get("model_type") != manifest.model_type:
        raise ValueError("model_type is not that of config")
    if manifest.dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError("dtype is not one of float32, bfloat16 and float16")
    if manifest.quantize not in _FORMAT_OF:
        raise ValueError("quantize is neither int8 nor int4")
    if not isinstance(manifest.eos_token_ids, list | tuple):
        raise ValueError("eos_token_ids is not a list")
    check_eos({"eos_token_id": manifest.eos_token_ids}, MANIFEST)
