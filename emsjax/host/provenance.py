"""The commit and package versions behind a result.

This module does not import jax, so that benchmarks can use it in worker processes.
"""

import importlib.metadata
import subprocess
from collections.abc import Sequence
from pathlib import Path


def commit_of(file: str, folders: Sequence[str] = ()) -> str | None:
    """Returns the checked-out commit of the repository that has a file, or None without one.

    Args:
      file: a source file.
      folders: the repository's folders to compare with the commit; the whole repository by
        default. If a tracked file in them was changed, a "+" follows the commit.
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
    """Returns the version of an installed package, or None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
