"""The file of a page, and the page of a run of the command line."""

from pathlib import Path

from emsjax.errors import UserError
from emsjax.host.files import replace_text


def check_page(file: Path) -> None:
    """Refuses a file that no page can be written to, before anything is computed.

    Raises:
      UserError: it is a directory or a device, or its directory is not there.
    """
    if file.exists() and not file.is_file():
        raise _unwritable(file, "it is no regular file")
    if not file.resolve().parent.is_dir():
        raise _unwritable(file, f"there is no directory {str(file.parent)!r}")


def write_page(file: Path, page: str) -> None:
    """Writes a page in the place of what is there.

    Raises:
      UserError: it cannot be written.
    """
    check_page(file)
    try:
        replace_text(file.resolve(), page)
    except OSError as error:
        raise _unwritable(file, error.strerror or str(error)) from error


def _unwritable(file: Path, why: str) -> UserError:
    return UserError(f"cannot write the report to {str(file)!r} ({why}); name another file.")
