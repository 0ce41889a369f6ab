"""Writing a page to a file."""

from pathlib import Path

from emsjax.errors import UserError
from emsjax.host.files import replace_text


def check_page(file: Path) -> None:
    """Checks that a page can be written to `file`, so that a mistake shows before the run.

    Raises:
      UserError: `file` is a directory or a device, or its directory does not exist.
    """
    if file.exists() and not file.is_file():
        raise _unwritable(file, "it is not a regular file")
    if not file.resolve().parent.is_dir():
        raise _unwritable(file, f"the directory {str(file.parent)!r} does not exist")


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
    return UserError(f"cannot write the report to {str(file)!r} ({why}); name another file.")
