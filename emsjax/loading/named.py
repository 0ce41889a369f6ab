"""Finds a model's configuration without its weights: by name or from a `config.json`."""

from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from emsjax.errors import UserError, foreign
from emsjax.loading.families import family, model_config, supported
from emsjax.loading.hf.completed import completed_from_table
from emsjax.loading.hf.config import check_given, complete_config, read_json
from emsjax.loading.hf.multimodal import text_part
from emsjax.loading.hub import hub_config, is_repo_id
from emsjax.loading.manifest import MANIFEST
from emsjax.loading.published import PUBLISHED
from emsjax.loading.quantised.choose import split_format
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
    return model_config(_found(model, _completed))


def hugging_face_config(model: str | Path) -> dict[str, Any]:
    """Returns the Hugging Face form of `named_config`, with every default filled in."""
    return _found(model, complete_config)


# Fills in the defaults of a configuration, like `complete_config`.
_Complete = Callable[[Mapping[str, Any], Collection[str], str], dict[str, Any]]


def _completed(given: Mapping[str, Any], types: Collection[str], origin: str) -> dict[str, Any]:
    """Fills in what the family reads; imports `transformers` only for an unusual configuration."""
    given = text_part(given, origin)
    check_given(given, types, origin)
    its_family = family(given)
    found = completed_from_table(given, {*(its_family.harmless or ()), *its_family.implied})
    return complete_config(given, types, origin) if found is None else found


def _found(model: str | Path, complete: _Complete) -> dict[str, Any]:
    name = str(model).lower()
    if name in PUBLISHED:
        return complete(PUBLISHED[name], supported(), name)
    with foreign(f"{str(model)[:100]!r} cannot be looked up", "name a config.json."):
        path = Path(model).expanduser()
        there = path.exists()
    if there:
        return _on_disk(path, complete)
    if "/" in name and not isinstance(model, Path) and is_repo_id(str(model)):
        return _from_file(hub_config(str(model)), complete)
    closest = get_close_matches(name, PUBLISHED, n=6, cutoff=0)
    raise UserError(
        f"there is no configuration {str(model)[:40]!r}; name a config.json, a model directory, a "
        f"hub model (owner/name), or a built-in name such as {', '.join(closest)}."
    )


def _on_disk(path: Path, complete: _Complete) -> dict[str, Any]:
    """Reads the configuration from a `config.json`, a model directory or a GGUF file."""
    if path.suffix == ".json":
        return _from_file(path, complete)
    if (path / "config.json").is_file() and not (path / MANIFEST).is_file():
        return _from_file(path / "config.json", complete)
    # Imported here because reading other formats takes jax, and a `config.json` does not.
    from emsjax.loading.opened import open_model

    return open_model(path, supported()).hf_config


def _from_file(file: Path, complete: _Complete) -> dict[str, Any]:
    given, _ = split_format(read_json(file), str(file))
    return complete(given, supported(), str(file))
