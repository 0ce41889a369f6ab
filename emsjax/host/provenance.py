"""Which code made a figure. Without jax, for the benchmarks' worker processes."""

import importlib.metadata
import subprocess
from collections.abc import Sequence
from pathlib import Path


def commit_of(file: str, folders: Sequence[str] = ()) -> str | None:
    """The commit that a file is of; None where it is in no repository.

    Args:
      file: a source file.
      folders: of the repository, in which a tracked file that differs puts a "+" behind the commit;
        all of them by default.
    """

    def git(*arguments: str) -> str:
        command, here = ["git", *arguments], Path(file).parent
        return subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=here
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file)
        paths = [f":/{folder}" for folder in folders]
        changed = git("status", "--porcelain", "--untracked-files=no", "--", *paths)
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def version_of(package: str) -> str | None:
    """Of an installed package; None where it is not."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
