"""Files of a Hugging Face checkpoint: a single one, or the shards an index names."""

import json
from pathlib import Path

from emsjax.errors import UserError


def find_weight_files(directory: Path, single: str) -> tuple[Path, ...]:
    """Weight files of one kind in `directory`; empty where there are none of that kind.

    Args:
      directory: a Hugging Face model directory.
      single: the file's name when the checkpoint is not sharded, e.g. "model.safetensors".

    Raises:
      UserError: the index is damaged, or a shard it names is missing.
    """
    if (directory / single).is_file():
        return (directory / single,)
    index = directory / f"{single}.index.json"
    return _sharded(index) if index.is_file() else ()


def _sharded(index: Path) -> tuple[Path, ...]:
    """The shards that `index` names, all of them present."""
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{index} is not a readable shard index ({error}); download the model again."
        ) from error
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise UserError(
            f"{index.parent} lacks {', '.join(missing)}, named in {index.name}; "
            "download the model again."
        )
    return tuple(index.parent / name for name in names)


def damaged(file: Path, why: object) -> UserError:
    """The error for a weight file that cannot be read as what its name says."""
    reason = str(why).strip().splitlines()[0] if str(why).strip() else type(why).__name__
    return UserError(f"{file} is truncated or damaged ({reason}); download or copy it again.")
