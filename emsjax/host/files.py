"""Files and directories that exist whole or not at all, even if the program is killed."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from emsjax.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: without locks, what a killed process left behind is never removed
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def replacing(file: Path, *, sync: bool = False) -> Iterator[BinaryIO]:
    """Opens a partial file next to `file`, which takes its place when the block succeeds.

    An existing `file` stays untouched until then, and passes its permissions on to the new one. An
    error or interrupt removes the partial file.

    Args:
      file: the file to write or replace.
      sync: whether to flush the data to the device first, so that a power failure cannot leave
        an empty file either.
    """
    partial = file.with_name(f"{file.name}.partial")
    try:
        with partial.open("wb") as stream:
            yield stream
            if sync:
                stream.flush()
                os.fsync(stream.fileno())
        if file.exists():
            shutil.copymode(file, partial)
        partial.replace(file)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def replace_text(file: Path, text: str) -> None:
    """Writes a UTF-8 file whole, replacing any existing one."""
    with replacing(file) as stream:
        stream.write(text.encode())


@contextlib.contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """Makes a temporary directory next to `target` and renames it to `target` after the block.

    An error or interrupt removes it. What a killed process left is removed by the next call.

    Raises:
      UserError: `target` is a file or a directory with something in it, or cannot be written.
    """
    check_free(target)
    target = target.absolute()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target)
        partial = Path(tempfile.mkdtemp(prefix=_prefix(target), dir=target.parent))
    except OSError as error:
        raise _unwritable(target, error) from error
    # The lock tells other processes that the directory is in use; it ends with this process.
    lock = _locked(partial)
    try:
        yield partial
        partial.chmod(0o755)  # mkdtemp grants access to the owner only
        _rename(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _rename(partial: Path, target: Path) -> None:
    """Renames, unless another process has put something at `target` in the meantime."""
    try:
        os.replace(partial, target)
    except OSError as error:
        check_free(target)
        raise _unwritable(target, error) from error


def _unwritable(target: Path, error: OSError) -> UserError:
    return UserError(f"{target} cannot be written ({error.strerror}); name another output.")


def check_free(target: Path) -> None:
    """Checks that a directory can be made at `target`.

    Raises:
      UserError: `target` exists and is not an empty directory.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{target} already exists and is not empty; remove it or name another.")


def _prefix(target: Path) -> str:
    return f".{target.name}.partial-"


def _locked(directory: Path) -> int | None:
    """Locks `directory` until the returned descriptor is closed; None if another process has it."""
    if fcntl is None:
        return None
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove_leftovers(target: Path) -> None:
    """Removes the partial directories of killed processes: those that nobody holds a lock on."""
    for partial in target.parent.glob(f"{_prefix(target)}*"):
        lock = _locked(partial)
        if lock is not None:
            shutil.rmtree(partial, ignore_errors=True)
            os.close(lock)
