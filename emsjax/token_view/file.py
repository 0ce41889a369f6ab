"""Writing a page to a file."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from emsjax.errors import UserError, foreign
from emsjax.host.files import replace_text
from emsjax.host.locks import alone, lock_of


def check_page(file: Path) -> None:
    """Checks that a page can be written to `file`, so that a mistake shows before the run.

    Raises:
      UserError: `file` is a directory or a device, its directory does not exist, or its name is too
        long.
    """
    # A name may be too long, or a symbolic link may lead to itself.
    with foreign(f"cannot write the report to {str(file)!r}", "name another file."):
        try:
            if file.exists() and not file.is_file():
                raise _unwritable(file, "it is not a regular file")
            if not file.resolve().parent.is_dir():
                raise _unwritable(file, f"the directory {str(file.parent)!r} does not exist")
        except OSError as error:
            raise _unwritable(file, error.strerror or str(error)) from error


@contextmanager
def reserved(file: Path) -> Iterator[None]:
    """Keeps other runs from writing a page to `file` until the block ends.

    Raises:
      UserError: another run will write the page, or its directory cannot be written.
    """
    refusal = (
        f"another process is writing the report {str(file)!r}; wait for it, or name another file."
    )
    with ExitStack() as held:
        try:
            held.enter_context(alone(lock_of(file), refusal))
        except OSError as error:
            raise _unwritable(file, error.strerror or str(error)) from error
        yield


def write_page(file: Path, page: str) -> None:
    """Writes a page, replacing any existing file.

    Raises:
      UserError: the file cannot be written.
    """
    check_page(file)
    try:
        replace_text(file.resolve(), page)
    except OSError as error:
        raise _unwritable(file, error.strerror or str(error)) from error


def _unwritable(file: Path, why: str) -> UserError:
    name = str(file) if len(str(file)) <= 200 else f"{str(file)[:199]}…"
    return UserError(f"cannot write the report to {name!r} ({why}); name another file.")
