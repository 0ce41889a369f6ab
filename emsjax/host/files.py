"""Files and directories that exist whole or not at all, even if the program is killed."""

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from emsjax.errors import UserError
from emsjax.host.locks import Held, Lock, on_the_file, open_alone


@contextlib.contextmanager
def replacing(file: Path, *, sync: bool = False) -> Iterator[BinaryIO]:
    """Opens a partial file next to `file`, which takes its place when the block succeeds.

    An existing `file` stays untouched until then, and passes its permissions on to the new one. An
    error or interrupt removes the partial file. Another process that replaces the same file waits.

    Args:
      file: the file to write or replace.
      sync: whether to flush the data to the device first, so that a power failure cannot leave
        an empty file either.
    """
    partial = file.with_name(f"{file.name}.partial")
    descriptor, lock = open_alone(partial, os.O_WRONLY | os.O_CREAT, wait=True)
    if not lock.excludes:  # another process may be writing to it: take a name of our own
        os.close(descriptor)
        partial.unlink(missing_ok=True)
        partial = file.with_name(f"{file.name}.{secrets.token_hex(4)}.partial")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    with lock:
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.truncate()  # a killed process may have left something
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
    """Makes a partial directory next to `target` and renames it to `target` after the block.

    An error or interrupt removes it. What a killed process left is removed by the next call.

    Raises:
      UserError: `target` is a file or a directory with something in it, or cannot be written, or
        another process is writing it.
    """
    check_free(target)
    target = target.absolute()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial, lock = _partial_directory(target)
    except Held:
        raise UserError(
            f"another process is writing {target}; wait for it, or name another output."
        ) from None
    except OSError as error:
        raise _unwritable(target, error) from error
    with lock:
        try:
            check_free(target)  # another process may have finished it in the meantime
            yield partial
            partial.chmod(0o755)  # it was made for the owner only
            _rename(partial, target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def _partial_directory(target: Path) -> tuple[Path, contextlib.AbstractContextManager[object]]:
    """Makes an empty directory next to `target` and locks it.

    Raises:
      Held: another process has the lock.
      OSError: the directory cannot be made.
    """
    prefix = f".{target.name}.partial"
    # Windows cannot open directories, and some network file systems cannot lock them.
    if on_the_file() and (found := _locked_directory(target.with_name(prefix))):
        return found
    made = Path(tempfile.mkdtemp(prefix=f"{prefix}-", dir=target.parent))
    return made, contextlib.nullcontext()


def _locked_directory(directory: Path) -> tuple[Path, Lock] | None:
    """Makes and locks an empty directory; None if the file system has no locks."""
    while True:
        # `Path.mkdir` would look again at what is there, which its owner may have renamed by then.
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, mode=0o700)
        try:
            descriptor, lock = open_alone(directory, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue  # its owner has finished
        os.close(descriptor)
        if lock.excludes:
            _empty(directory, lock)
            return directory, lock
        lock.release()
        with contextlib.suppress(OSError):
            directory.rmdir()
        return None


def _empty(directory: Path, lock: Lock) -> None:
    """Removes what a killed process left; releases the lock if that fails."""
    try:
        for path in directory.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    except BaseException:
        lock.release()
        raise


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
