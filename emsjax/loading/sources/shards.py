"""Finds the weight files of a Hugging Face checkpoint: one file, or the shards of an index."""

import json
from contextlib import AbstractContextManager
from pathlib import Path

from emsjax.errors import UserError, foreign, reason


def find_weight_files(directory: Path, single: str) -> tuple[Path, ...]:
    """Returns the weight files of one format in `directory`; empty if there are none.

    Args:
      directory: a Hugging Face model directory.
      single: name of the file if the checkpoint is not sharded, e.g. "model.safetensors".

    Raises:
      UserError: the index is damaged, or a shard it names is missing.
    """
    if (directory / single).is_file():
        return (directory / single,)
    index = directory / f"{single}.index.json"
    return _sharded(index) if index.is_file() else ()


def _sharded(index: Path) -> tuple[Path, ...]:
    """Returns the shards that `index` lists, after checking that all exist."""
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        if not names or not all(_is_name(name) for name in names):
            raise ValueError("it does not name a file for each tensor")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{index} is not a readable shard index ({error}); download the model again."
        ) from error
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(
            f"{index.parent} lacks {', '.join(missing[:3])}{more}, listed in {index.name}; "
            "download the model again."
        )
    return tuple(index.parent / name for name in names)


def _is_name(name: object) -> bool:
    """Returns whether `name` can be the name of a file."""
    return isinstance(name, str) and 0 < len(name) < 256 and name.isprintable()


def damaged(file: Path, why: str | Exception) -> UserError:
    """Returns the error for a weight file that is not valid in its format.

    Args:
      file: the weight file.
      why: a description or an exception.
    """
    shown = why if isinstance(why, str) else reason(why)
    return UserError(f"{file} is truncated or damaged ({shown}); download or copy it again.")


def decoding(file: Path) -> AbstractContextManager[None]:
    """Turns whatever the block raises about a weight file into the error of `damaged`."""
    return foreign(f"{file} is truncated or damaged", "download or copy it again.")
