"""Locks between processes that end with the process that holds them, however it ends.

On POSIX the lock is on the open file (`flock`). Elsewhere it is `filelock`'s, on a file beside it.
On a file system without locks nothing is excluded, and everything else works.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from emsjax.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


# A file is opened again if it was renamed or removed while its lock was awaited. File systems whose
# numbers of files are not stable look as if that always happened.
_ATTEMPTS = 1000


class Held(Exception):  # noqa: N818  (it is an answer, not a failure)
    """Another process holds the lock."""


class Lock:
    """A lock that is held until `release`, or until this process ends.

    Attributes:
      excludes: whether it excludes others; false on a file system without locks.
    """

    def __init__(self, descriptor: int, path: Path, *, wait: bool = False):
        """Locks an open file.

        Args:
          descriptor: of the file; it may be closed while the lock is held.
          path: the file's path, which only platforms without `flock` use.
          wait: whether to wait while another process holds the lock.

        Raises:
          Held: another process holds the lock, and `wait` is false.
        """
        self._beside = None if fcntl is not None else _beside(path, wait)
        # The lock belongs to all duplicates of the descriptor and ends with the last of them.
        self._descriptors = [os.dup(descriptor)]
        try:
            self.excludes = _flock(self._descriptors[0], wait)
        except BaseException:
            self.release()
            raise

    def take_in(self, descriptor: int) -> None:
        """Holds the lock of another open file as well, which is about to replace this one."""
        if fcntl is not None:  # elsewhere the lock is on the name, which stays the same
            self._descriptors.append(os.dup(descriptor))

    def release(self) -> None:
        """Ends the lock."""
        while self._descriptors:
            os.close(self._descriptors.pop())
        if self._beside is not None:
            self._beside.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def open_alone(path: Path, flags: int, *, wait: bool = False) -> tuple[int, Lock]:
    """Opens a file and locks it, so that no other caller has it open.

    Args:
      path: the file.
      flags: as for `os.open`. The file must not be truncated before it is locked.
      wait: whether to wait while another process has it open.

    Returns:
      The descriptor, and the lock.

    Raises:
      Held: another process has it open, and `wait` is false.
      OSError: the file cannot be opened.
    """
    for attempt in range(_ATTEMPTS):
        descriptor = os.open(path, flags | getattr(os, "O_CLOEXEC", 0), 0o666)
        try:
            lock = Lock(descriptor, path, wait=wait)
        except BaseException:
            os.close(descriptor)
            raise
        if _is_at(descriptor, path) or attempt == _ATTEMPTS - 1:
            break
        # The process that had the lock has renamed or removed the file.
        os.close(descriptor)
        lock.release()
    return descriptor, lock


@contextlib.contextmanager
def alone(file: Path, refusal: str | None = None) -> Iterator[None]:
    """Excludes other processes that lock the same file until the block ends.

    Args:
      file: the file to lock, in an existing directory. It is made before the block and removed
        after it. A killed process leaves the file but not the lock.
      refusal: the message if another process holds the lock; None to wait for it.

    Raises:
      UserError: another process holds the lock.
      OSError: the file cannot be made.
    """
    try:
        descriptor, lock = open_alone(file, os.O_RDWR | os.O_CREAT, wait=refusal is None)
    except Held:
        raise UserError(str(refusal)) from None
    os.close(descriptor)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            file.unlink()
        lock.release()


@contextlib.contextmanager
def alone_in(directory: Path, refusal: str) -> Iterator[None]:
    """Excludes other processes that work in the same directory until the block ends.

    Args:
      directory: made before the block if it is missing, and removed after it if it is empty then.
      refusal: the message if another process works in it.

    Raises:
      UserError: another process works in it.
      OSError: it cannot be made or written.
    """
    missing = [each for each in (directory, *directory.parents) if not each.exists()]
    with contextlib.ExitStack() as after:
        for each in reversed(missing):
            after.callback(_remove_if_empty, each)
        after.enter_context(_locked_in(directory, refusal))
        yield


def _locked_in(directory: Path, refusal: str) -> contextlib.ExitStack:
    with contextlib.ExitStack() as held:
        for attempt in range(_ATTEMPTS):
            try:
                # `mkdir` raises `FileExistsError` if a directory that it found is then removed.
                directory.mkdir(parents=True, exist_ok=True)
                held.enter_context(alone(directory / ".lock", refusal))
                break
            except (FileNotFoundError, FileExistsError):
                # Another process has ended meanwhile, and removed what it had made.
                if attempt == _ATTEMPTS - 1:
                    raise
        return held.pop_all()


def _remove_if_empty(directory: Path) -> None:
    with contextlib.suppress(OSError):
        directory.rmdir()


def lock_of(path: Path) -> Path:
    """Returns the file to lock for a file or directory that does not exist yet or is replaced."""
    path = Path(os.path.realpath(path))
    return path.with_name(f".{path.name}.lock")


def on_the_file() -> bool:
    """Returns whether locks are on the open file or directory itself, as on POSIX."""
    return fcntl is not None


def _flock(descriptor: int, wait: bool) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise Held from None
    except OSError:
        return False  # this file system has no locks
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False


def _beside(path: Path, wait: bool):  # type: ignore[no-untyped-def]
    from filelock import FileLock, Timeout

    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        raise Held from None
    return lock
