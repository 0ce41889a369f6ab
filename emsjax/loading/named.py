"""Finds a model's configuration without its weights: by name or from a `config.json`."""

from pathlib import Path
from typing import Any

from emsjax.errors import UserError, foreign
from emsjax.loading.checkpoint import MANIFEST
from emsjax.loading.families import model_config, supported
from emsjax.loading.hf.config import complete_config, read_config, read_json
from emsjax.loading.hub import hub_config, is_repo_id
from emsjax.loading.opened import open_model
from emsjax.loading.published import PUBLISHED
from emsjax.models.config import DecoderConfig


def named_config(model: str | Path) -> DecoderConfig:
    """Returns the `DecoderConfig` of a model, without needing its weights.

    Args:
      model: a built-in name such as "opt-6.7b" (in any case; it takes precedence over a file of
        that name), a Hugging Face `config.json` or a directory with one, or anything that `LLM`
        accepts. Only the configuration is read or downloaded.

    Raises:
      UserError: there is no such name or file, or the configuration is damaged or unsupported.
    """
    return model_config(hugging_face_config(model))


def hugging_face_config(model: str | Path) -> dict[str, Any]:
    """Returns the Hugging Face form of `named_config`, with every default filled in."""
    name = str(model).lower()
    if name in PUBLISHED:
        return complete_config(PUBLISHED[name], supported(), name)
    with foreign(f"{str(model)[:100]!r} cannot be looked up", "name a config.json."):
        path = Path(model).expanduser()
        there = path.exists()
    if there:
        return _on_disk(path)
    if "/" in name and not isinstance(model, Path) and is_repo_id(str(model)):
        return _from_file(hub_config(str(model)))
    raise UserError(
        f"there is no configuration {str(model)[:40]!r}; name a config.json, a model directory, a "
        f"hub model (owner/name), or one of {', '.join(PUBLISHED)}."
    )


def _on_disk(path: Path) -> dict[str, Any]:
    """Reads the configuration from a `config.json`, a model directory or a GGUF file."""
    if path.suffix == ".json":
        return _from_file(path)
    if (path / "config.json").is_file() and not (path / MANIFEST).is_file():
        return read_config(path, supported())
    return open_model(path, supported()).hf_config


def _from_file(file: Path) -> dict[str, Any]:
    return complete_config(read_json(file), supported(), str(file))
