"""A model on disk, of any format, before its weights are read."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emsjax.errors import UserError
from emsjax.loading.checkpoint import MANIFEST, open_checkpoint
from emsjax.loading.gguf.config import gguf_config
from emsjax.loading.gguf.file import GgufFile
from emsjax.loading.gguf.tokenizer import gguf_tokenizer
from emsjax.loading.hf.config import eos_token_ids, read_config, read_json
from emsjax.loading.hf.tokenizer import load_tokenizer
from emsjax.loading.sources.source import TensorSource, open_directory

_GENERATION_CONFIG = "generation_config.json"


@dataclass(frozen=True)
class OpenedModel:
    """What is known of a model without reading its weights.

    Attributes:
      name: the model's name, for people.
      source: its tensors.
      own_names: whether the tensors bear our parameters' names (one of our checkpoints).
      hf_config: the Hugging Face configuration, every default filled in.
      eos_token_ids: tokens that end a text; empty where the model names none.
      generation_config: what the model says of how to generate; empty where it says nothing.
      tokenizer: reads the tokenizer; gives None where there is none.
      extra_files: small files that a conversion keeps.
    """

    name: str
    source: TensorSource
    own_names: bool
    hf_config: dict[str, Any]
    eos_token_ids: tuple[int, ...]
    tokenizer: Callable[[], Any]
    generation_config: dict[str, Any] = field(default_factory=dict)
    extra_files: tuple[Path, ...] = ()


def open_model(path: Path, supported: Collection[str]) -> OpenedModel:
    """Open a model directory (ours, Hugging Face's, or with one GGUF file) or a GGUF file.

    Args:
      path: what to open.
      supported: model types to accept.

    Raises:
      UserError: there is no model, or a damaged or unsupported one.
    """
    if path.is_file():
        return _open_gguf(path, supported)
    if (path / MANIFEST).is_file():
        return _open_ours(path, supported)
    if (path / "config.json").is_file():
        return _open_hugging_face(path, supported)
    return _open_gguf(_only_gguf(path), supported)


def _only_gguf(directory: Path) -> Path:
    """The one GGUF file in a directory."""
    found = sorted(directory.glob("*.gguf"))
    if not found:
        raise UserError(
            f"{directory} holds no model: it needs a config.json with weights beside it, "
            f"a .gguf file, or {MANIFEST} as written by `python -m emsjax.convert`."
        )
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise UserError(f"{directory} holds several GGUF files ({names}); name one of them.")
    return found[0]


def _open_ours(directory: Path, supported: Collection[str]) -> OpenedModel:
    manifest, source = open_checkpoint(directory)
    if manifest.model_type not in supported:
        raise UserError(
            f"{directory} has model type {manifest.model_type!r}, which is not supported; "
            f"choose a model of one of these families: {', '.join(sorted(supported))}."
        )
    return OpenedModel(
        name=manifest.source,
        source=source,
        own_names=True,
        hf_config=manifest.config,
        eos_token_ids=tuple(manifest.eos_token_ids),
        tokenizer=lambda: load_tokenizer(directory),
        generation_config=_generation_config(directory),
        extra_files=_extra(directory),
    )


def _open_hugging_face(directory: Path, supported: Collection[str]) -> OpenedModel:
    config = read_config(directory, supported)
    generation_config = _generation_config(directory)
    return OpenedModel(
        name=_name(directory),
        source=open_directory(directory),
        own_names=False,
        hf_config=config,
        eos_token_ids=eos_token_ids(generation_config, config),
        tokenizer=lambda: load_tokenizer(directory),
        generation_config=generation_config,
        extra_files=_extra(directory),
    )


def _open_gguf(path: Path, supported: Collection[str]) -> OpenedModel:
    file = GgufFile(path)
    config = gguf_config(file, supported)
    return OpenedModel(
        name=path.stem,
        source=file,
        own_names=False,
        hf_config=config,
        eos_token_ids=eos_token_ids(config),
        tokenizer=lambda: gguf_tokenizer(file),
    )


def _extra(directory: Path) -> tuple[Path, ...]:
    file = directory / _GENERATION_CONFIG
    return (file,) if file.is_file() else ()


def _generation_config(directory: Path) -> dict[str, Any]:
    """Of the model; empty where it has none."""
    return {} if not _extra(directory) else read_json(directory / _GENERATION_CONFIG)


def _name(directory: Path) -> str:
    """A directory's name; the repository's for a snapshot in the hub's cache."""
    directory = directory.resolve()
    if directory.parent.name == "snapshots":
        return directory.parent.parent.name.removeprefix("models--").replace("--", "/")
    return directory.name
