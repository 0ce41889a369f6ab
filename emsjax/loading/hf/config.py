"""A model's Hugging Face configuration, every default filled in."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from emsjax.errors import UserError
from emsjax.loading.hf.unadvised import without_advice


def read_config(directory: Path, supported: Collection[str]) -> dict[str, Any]:
    """The configuration of a Hugging Face model directory.

    Args:
      directory: holds `config.json`.
      supported: model types to accept.

    Raises:
      UserError: `config.json` is missing, damaged, or of an unsupported model type.
    """
    file = directory / "config.json"
    return complete_config(read_json(file), supported, str(file))


def read_json(file: Path, remedy: str = "download it again") -> dict[str, Any]:
    """A JSON object from a file.

    Args:
      file: where it is.
      remedy: what a message says to do about a damaged one.

    Raises:
      UserError: there is no such file, or it is damaged.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON ({error}); {remedy}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is not a JSON object; {remedy}.")
    return content


def complete_config(
    given: Mapping[str, Any], supported: Collection[str], origin: str
) -> dict[str, Any]:
    """`given` with the defaults of its `model_type`, as `transformers` fills them in.

    Args:
      given: a Hugging Face configuration.
      supported: model types to accept.
      origin: what an error calls the configuration.

    Raises:
      UserError: the model type is not supported, or `transformers` rejects the configuration.
    """
    model_type = given.get("model_type")
    if model_type not in supported:
        raise UserError(
            f"{origin} has model type {model_type!r}, which is not supported; "
            f"choose a model of one of these families: {', '.join(sorted(supported))}."
        )
    with without_advice():
        from transformers import CONFIG_MAPPING

    try:
        return CONFIG_MAPPING[model_type].from_dict(dict(given)).to_dict()
    except Exception as error:  # transformers validates with several libraries
        raise UserError(f"{origin} is rejected by transformers: {_line(error)}") from error


def eos_token_ids(*configs: Mapping[str, Any]) -> tuple[int, ...]:
    """End-of-text ids from the first configuration that names any; empty where none does."""
    for config in configs:
        found = config.get("eos_token_id")
        if found is not None:
            return tuple(found) if isinstance(found, list | tuple) else (int(found),)
    return ()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
