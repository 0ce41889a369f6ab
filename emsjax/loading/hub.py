"""Finds models of the Hugging Face hub in its local cache, or downloads them."""

import glob
import re
import socket
import threading
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from emsjax.errors import UserError, foreign, reason
from emsjax.loading.sources.shards import find_weight_files

_TIMEOUT = 5.0  # seconds to wait for the hub's first answer
_REACH_S = 2.0  # seconds to wait for a connection to the hub
_SMALL_FILES = ("*.json", "tokenizer.model", "*.txt", "*.jinja")
# Other folders hold exports to other formats. The code is not run: it is refused.
_IN_FOLDERS = ("additional_chat_templates/*.jinja", "custom_generate/generate.py")


def is_repo_id(name: str) -> bool:
    """Returns whether `name` looks like a hub model: "owner/name", or "name" for old models."""
    part = r"[A-Za-z0-9][\w.-]*"
    return re.fullmatch(rf"{part}(/{part})?", name) is not None


def cached_snapshot(repo_id: str) -> Path | None:
    """Returns the model's directory in the hub's local cache, or None unless it is complete.

    Raises:
      UserError: the hub takes no such name, or the cache cannot be read.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    _check_name(repo_id)
    with foreign(
        f"the Hugging Face cache cannot be searched for model {repo_id!r}",
        "remove the model from the cache, or name a model directory.",
    ):
        try:
            snapshot = Path(snapshot_download(repo_id, local_files_only=True))
        except LocalEntryNotFoundError:
            return None
    return snapshot if _complete(snapshot) else None


def hub_snapshot(repo_id: str) -> Path:
    """Returns the model's directory in the hub's local cache, downloading it if necessary.

    Raises:
      UserError: there is no such model, or the hub cannot be reached.
    """
    return cached_snapshot(repo_id) or _download(repo_id)


def hub_config(repo_id: str) -> Path:
    """Returns the model's `config.json`, from the hub's local cache or downloaded on its own.

    Raises:
      UserError: there is no such model, or the hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download

    _check_name(repo_id)
    unreachable = _unreachable()
    try:
        return Path(
            hf_hub_download(
                repo_id, "config.json", etag_timeout=_TIMEOUT, local_files_only=bool(unreachable)
            )
        )
    except Exception as error:  # the hub's client passes on its HTTP library's errors
        raise _refused(repo_id, error, unreachable) from error


def reachable() -> bool:
    """Returns whether the hub may be asked and answers soon."""
    from huggingface_hub import constants

    return not constants.HF_HUB_OFFLINE and _unreachable() is None


def _unreachable() -> str | None:
    """Returns why the hub cannot be reached, or None if something accepts connections there.

    Without this, the hub's client would try again and again for half a minute.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return None  # the client itself refuses at once
    hub = urlsplit(constants.ENDPOINT)
    proxy = getproxies().get(hub.scheme)
    through = hub if proxy is None or proxy_bypass(hub.hostname or "") else urlsplit(proxy)
    host = through.hostname or ""
    port = through.port or (80 if through.scheme == "http" else 443)
    reasons: list[str | None] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=_REACH_S).close()
            reasons.append(None)
        except (OSError, UnicodeError) as error:
            reasons.append(f"{host}: {error}")

    # The search for the host's address has no time limit, so it runs in a thread.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_REACH_S)
    return reasons[0] if reasons else f"{host} does not answer"


def _check_name(repo_id: str) -> None:
    """Checks a name by the rules of the hub's own client, which refuses "a..b", for example."""
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    with foreign(
        f"model {repo_id!r} does not exist here, and the Hugging Face hub takes no such name",
        "name a model directory, a .gguf file or a model of the hub (owner/name).",
    ):
        validate_repo_id(repo_id)


def _complete(snapshot: Path) -> bool:
    """Returns whether the configuration and all weight files are present."""
    try:
        weights = [
            find_weight_files(snapshot, kind) for kind in ("model.safetensors", "pytorch_model.bin")
        ]
    except UserError:  # a shard is missing
        return False
    return (snapshot / "config.json").is_file() and any(weights)


def _download(repo_id: str) -> Path:
    """Downloads configuration, tokenizer and weights: pickles only if there are no safetensors."""
    from huggingface_hub import HfApi, snapshot_download

    unreachable = _unreachable()
    try:
        if unreachable is not None:
            raise ConnectionError(unreachable)
        siblings = HfApi().model_info(repo_id, timeout=_TIMEOUT).siblings or []
        wanted = _wanted(repo_id, [sibling.rfilename for sibling in siblings])
        return Path(snapshot_download(repo_id, allow_patterns=[*map(glob.escape, wanted)]))
    except UserError:
        raise
    except Exception as error:  # the hub's client passes on its HTTP library's errors
        raise _refused(repo_id, error, unreachable) from error


def _wanted(repo_id: str, names: Sequence[str]) -> list[str]:
    """Returns which of a hub model's files to download.

    Raises:
      UserError: they hold the model only as GGUF files.
    """
    top = [name for name in names if "/" not in name]
    kinds = {name.rpartition(".")[2] for name in top}
    if "gguf" in kinds and not kinds & {"safetensors", "bin"}:
        raise UserError(
            f"model {repo_id!r} of the Hugging Face hub holds only GGUF files; download one of "
            "them and name the file."
        )
    weights = "*.safetensors" if "safetensors" in kinds else "*.bin"
    return [
        *(name for name in top if any(fnmatch(name, p) for p in (*_SMALL_FILES, weights))),
        *(name for name in names if any(fnmatch(name, p) for p in _IN_FOLDERS)),
    ]


def _refused(repo_id: str, error: Exception, unreachable: str | None) -> UserError:
    """Returns the error to report for a failed download.

    Args:
      repo_id: the model's name on the hub.
      error: what the hub's client raised.
      unreachable: why the hub cannot be reached; None if it can.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    if isinstance(error, RepositoryNotFoundError):
        return UserError(
            f"model {repo_id!r} is neither a local directory or GGUF file nor a model of the "
            "Hugging Face hub that you have access to; check the name."
        )
    return UserError(
        f"model {repo_id!r} is neither a local directory or GGUF file nor in the Hugging Face "
        f"cache, and the hub cannot be reached ({unreachable or reason(error)}); check the path or "
        "your connection."
    )
