"""Models of the Hugging Face hub, from its local cache where they are complete there."""

import re
from pathlib import Path

from emsjax.errors import UserError
from emsjax.loading.sources.shards import find_weight_files

_TIMEOUT = 5.0  # seconds to wait for the hub's first answer
_SMALL_FILES = ["*.json", "tokenizer.model", "*.txt", "*.jinja"]


def is_repo_id(name: str) -> bool:
    """Whether `name` can be a model of the hub: "owner/name", or "name" for the oldest ones."""
    part = r"[A-Za-z0-9][\w.-]*"
    return re.fullmatch(rf"{part}(/{part})?", name) is not None


def cached_snapshot(repo_id: str) -> Path | None:
    """The model in the hub's local cache; None where it is not there, or only in part."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        snapshot = Path(snapshot_download(repo_id, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return snapshot if _complete(snapshot) else None


def hub_snapshot(repo_id: str) -> Path:
    """The model's directory in the hub's local cache, downloaded if need be.

    Raises:
      UserError: no such model, or the hub cannot be reached.
    """
    return cached_snapshot(repo_id) or _download(repo_id)


def hub_config(repo_id: str) -> Path:
    """The model's `config.json` alone, from the hub's local cache or downloaded.

    Raises:
      UserError: no such model, or the hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repo_id, "config.json", etag_timeout=_TIMEOUT))
    except Exception as error:  # the hub's client raises its HTTP library's errors as they are
        raise _refused(repo_id, error) from error


def _complete(snapshot: Path) -> bool:
    """Whether configuration and all weight files are there."""
    try:
        weights = [
            find_weight_files(snapshot, kind) for kind in ("model.safetensors", "pytorch_model.bin")
        ]
    except UserError:  # a shard is missing
        return False
    return (snapshot / "config.json").is_file() and any(weights)


def _download(repo_id: str) -> Path:
    """Downloads configuration, tokenizer and weights; pickles only for want of safetensors."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        siblings = HfApi().model_info(repo_id, timeout=_TIMEOUT).siblings or []
        names = [sibling.rfilename for sibling in siblings]
        weights = "*.safetensors" if any(n.endswith(".safetensors") for n in names) else "*.bin"
        patterns = [*_SMALL_FILES, weights]
        ignored = ["*/*"]  # exports to other formats live in subfolders
        return Path(snapshot_download(repo_id, allow_patterns=patterns, ignore_patterns=ignored))
    except Exception as error:  # the hub's client raises its HTTP library's errors as they are
        raise _refused(repo_id, error) from error


def _refused(repo_id: str, error: Exception) -> UserError:
    """What to say of a download that failed."""
    from huggingface_hub.errors import RepositoryNotFoundError

    if isinstance(error, RepositoryNotFoundError):
        return UserError(
            f"model {repo_id!r} is neither a local directory or GGUF file nor a model of the "
            "Hugging Face hub that you have access to; check the name."
        )
    reason = " ".join(str(error).split())[:200]
    return UserError(
        f"model {repo_id!r} is neither a local directory or GGUF file nor in the Hugging Face "
        f"cache, and the hub cannot be reached ({reason}); check the path, or connect."
    )
