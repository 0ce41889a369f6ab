"""Files that are there whole or not at all, whatever ends the program."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from emsjax.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: what a killed process left behind stays there
    fcntl = None  # type: ignore[assignment]


def replace_text(file: Path, text: str) -> None:
    """Writes a UTF-8 file in the place of what is there."""
    partial = file.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)


@contextlib.contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """A temporary directory beside `target`, renamed to it at the end of the block.

    An error or interrupt removes it; what a killed process left is removed by the next one.

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
        raise UserError(f"{target} cannot be written ({error.strerror}).") from error
    lock = _locked(partial)
    try:
        yield partial
        partial.chmod(0o755)  # mkdtemp lets only its owner in
        _rename(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _rename(partial: Path, target: Path) -> None:
    """Renames, unless another process was first to put something at `target`."""
    try:
        os.replace(partial, target)
    except OSError as error:
        check_free(target)
        raise UserError(f"{target} cannot be written ({error.strerror}).") from error


def check_free(target: Path) -> None:
    """Checks that a directory can be made at `target`: nothing is there, or an empty directory.

    Raises:
      UserError: something is there.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(
            f"{target} is there already and not empty; name another output, or remove it."
        )


def _prefix(target: Path) -> str:
    return f".{target.name}.partial-"


def _locked(directory: Path) -> int | None:
    """A descriptor that locks `directory` until it is closed or its process ends; None if taken."""
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
    """Removes what killed processes left: partial directories that nobody holds a lock on."""
    for partial in target.parent.glob(f"{_prefix(target)}*"):
        lock = _locked(partial)
        if lock is not None:
            shutil.rmtree(partial, ignore_errors=True)
            os.close(lock)
