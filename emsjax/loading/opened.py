"""Opens a model on disk, in any format, without reading its weights."""

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emsjax.errors import UserError
from emsjax.loading.checkpoint import open_checkpoint
from emsjax.loading.families import model_config
from emsjax.loading.gguf.config import gguf_config
from emsjax.loading.gguf.file import GgufFile
from emsjax.loading.gguf.tokenizer import gguf_tokenizer
from emsjax.loading.head import as_stored
from emsjax.loading.hf.beside import check_beside
from emsjax.loading.hf.config import check_supported, complete_config, eos_token_ids, read_json
from emsjax.loading.hf.generation import GENERATION_KEYS
from emsjax.loading.hf.multimodal import is_multimodal
from emsjax.loading.hf.tokenizer import load_tokenizer
from emsjax.loading.manifest import MANIFEST
from emsjax.loading.quantised.choose import split_format
from emsjax.loading.quantised.format import Format
from emsjax.loading.quantised.source import QuantisedSource
from emsjax.loading.sources.safetensors import SafetensorsSource
from emsjax.loading.sources.source import TensorSource, open_directory

_GENERATION_CONFIG = "generation_config.json"


@dataclass(frozen=True)
class OpenedModel:
    """A model whose weights have not been read yet.

    Attributes:
      name: display name.
      path: its directory or file.
      source: the checkpoint's tensors.
      own_names: whether the tensors are named after emsjax's parameters, as in its checkpoints.
      hf_config: the Hugging Face configuration with every default filled in.
      eos_token_ids: end-of-text token ids; empty if the model declares none.
      tokenizer: function that reads and returns the tokenizer, or None if the model has none.
      generation_config: the contents of `generation_config.json`; without such a file, the keys of
        generation in `config.json`.
      extra_files: small files that a conversion copies.
    """

    name: str
    path: Path
    source: TensorSource
    own_names: bool
    hf_config: dict[str, Any]
    eos_token_ids: tuple[int, ...]
    tokenizer: Callable[[], Any]
    generation_config: dict[str, Any] = field(default_factory=dict)
    extra_files: tuple[Path, ...] = ()


def open_model(path: Path, supported: Collection[str]) -> OpenedModel:
    """Opens a model.

    Args:
      path: an emsjax checkpoint, a Hugging Face directory, a GGUF file, or a directory with one
        GGUF file.
      supported: model types to accept.

    Raises:
      UserError: there is no model at `path`, it may not be read, or it is damaged or unsupported.
    """
    try:
        return _opened(path, supported)
    except OSError as error:
        raise UserError(
            f"{error.filename or path} cannot be read ({error.strerror}); check its permissions."
        ) from error


def _opened(path: Path, supported: Collection[str]) -> OpenedModel:
    if path.is_file():
        return _open_gguf(path, supported)
    if (path / MANIFEST).is_file():
        return _open_ours(path, supported)
    if (path / "config.json").is_file():
        return _open_hugging_face(path, supported)
    check_beside(path)
    return _open_gguf(_only_gguf(path), supported, beside=path)


def _only_gguf(directory: Path) -> Path:
    """Returns the only GGUF file in a directory."""
    found = sorted(directory.glob("*.gguf"))
    if not found:
        raise UserError(
            f"{directory} holds no model; name a directory with a config.json and weights, with a "
            f".gguf file, or with an {MANIFEST} written by `python -m emsjax.convert`."
        )
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise UserError(f"{directory} holds several GGUF files ({names}); name one of them.")
    return found[0]


def _open_ours(directory: Path, supported: Collection[str]) -> OpenedModel:
    check_beside(directory)
    manifest, source = open_checkpoint(directory)
    check_supported(manifest.model_type, supported, str(directory))
    return OpenedModel(
        name=manifest.source,
        path=directory,
        source=source,
        own_names=True,
        hf_config=manifest.config,
        eos_token_ids=tuple(manifest.eos_token_ids),
        tokenizer=lambda: load_tokenizer(directory),
        generation_config=_generation_config(directory, manifest.config),
        extra_files=_extra(directory),
    )


def _open_hugging_face(directory: Path, supported: Collection[str]) -> OpenedModel:
    file = directory / "config.json"
    given, its_format = split_format(read_json(file), str(file))
    check_beside(directory, described=its_format is not None)
    config = complete_config(given, supported, str(file))
    model_config(config, str(file))  # fails with the file's name
    generation_config = _generation_config(directory, config)
    source = _tensors(directory, its_format)
    config = as_stored(config, source)
    part = " (text part)" if is_multimodal(read_json(directory / "config.json")) else ""
    return OpenedModel(
        name=name_of(directory) + part,
        path=directory,
        source=source,
        own_names=False,
        hf_config=config,
        eos_token_ids=eos_token_ids(generation_config, config),
        tokenizer=lambda: load_tokenizer(directory),
        generation_config=generation_config,
        extra_files=_extra(directory),
    )


def _tensors(directory: Path, its_format: Format | None) -> TensorSource:
    """Opens the weights of a directory, which may be quantised."""
    source = open_directory(directory)
    if its_format is None:
        return source
    if not isinstance(source, SafetensorsSource):
        raise UserError(
            f"{directory} holds quantised weights ({its_format.name}) in PyTorch pickles, which "
            "are read only if they are not quantised; use a safetensors copy."
        )
    return QuantisedSource(source, its_format)


def _open_gguf(path: Path, supported: Collection[str], beside: Path | None = None) -> OpenedModel:
    """Opens a GGUF file, with the generation config of the directory `beside` if it is given."""
    file = GgufFile(path)
    config = gguf_config(file, supported)
    if beside is not None:
        # Into the configuration, which a conversion keeps whole.
        given = _generation_config(beside, {})
        config |= {key: given[key] for key in given if key in GENERATION_KEYS or key not in config}
    return OpenedModel(
        name=path.stem,
        path=path,
        source=file,
        own_names=False,
        hf_config=config,
        eos_token_ids=eos_token_ids(config),
        tokenizer=lambda: gguf_tokenizer(file),
        generation_config=_generation_keys(config),
    )


def _extra(directory: Path) -> tuple[Path, ...]:
    file = directory / _GENERATION_CONFIG
    return (file,) if os.path.lexists(file) else ()


def _generation_config(directory: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Reads `generation_config.json`; without it, the keys of generation in the configuration."""
    # A link to nothing, as in an incomplete copy of the hub's cache, is an error.
    for file in _extra(directory):
        return read_json(file)
    return _generation_keys(config)


def _generation_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: config[key] for key in config.keys() & GENERATION_KEYS}


def name_of(directory: Path) -> str:
    """Returns the directory's name, or the hub id for a snapshot in the hub's cache."""
    directory = directory.resolve()
    # The cache lays snapshots out as models--owner--name/snapshots/<commit>.
    if directory.parent.name == "snapshots":
        return directory.parent.parent.name.removeprefix("models--").replace("--", "/")
    return directory.name
