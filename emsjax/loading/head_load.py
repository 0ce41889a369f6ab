"""Finds published heads and loads them as drafters for a target."""

from collections.abc import Callable, Mapping
from pathlib import Path

from emsjax.drafters.dflash import DFlash
from emsjax.drafters.eagle import Eagle
from emsjax.drafters.medusa import Medusa
from emsjax.loading.dflash_load import load_dflash
from emsjax.loading.eagle_load import load_eagle
from emsjax.loading.head_kind import DFLASH, EAGLE_1, EAGLE_3, MEDUSA, MTP, PREFIXES, kind_of
from emsjax.loading.head_parts import Head
from emsjax.loading.hf.config import read_json
from emsjax.loading.load import LoadedModel
from emsjax.loading.medusa_load import load_medusa
from emsjax.loading.mtp_load import load_mtp
from emsjax.loading.parameters import bare
from emsjax.loading.sources.safetensors import SafetensorsSource
from emsjax.loading.sources.source import TensorSource, open_directory
from emsjax.loading.sources.torch import TorchSource

PublishedHead = Eagle | DFlash | Medusa
# The only file with weights of Medusa's own checkpoints.
_MEDUSA_FILE = "medusa_lm_head"

_LOADERS: Mapping[str, Callable[[Head, LoadedModel, int, int], PublishedHead]] = {
    EAGLE_1: load_eagle,
    EAGLE_3: load_eagle,
    DFLASH: load_dflash,
    MEDUSA: load_medusa,
    MTP: load_mtp,
}


def find_head(directory: Path) -> Head | None:
    """Returns the head in a directory; None if there is something else.

    Raises:
      UserError: it is damaged, or of a kind that is not supported.
    """
    if not (directory / "config.json").is_file():
        return None
    config = read_json(directory / "config.json")
    source = _open(directory)
    names = {bare(name, PREFIXES): name for name in source.shapes()}
    kind = kind_of(names, config, str(directory))
    return None if kind is None else Head(kind, directory, config, source, names)


def load_head(head: Head, target: LoadedModel, draft_length: int, narrowest: int) -> PublishedHead:
    """Reads a head and returns the drafter.

    Args:
      head: the head.
      target: the model to draft for.
      draft_length: k, the most guesses of a slot.
      narrowest: the fewest rows that are worth a separate shape, apart from a single row.

    Raises:
      UserError: it does not fit the target, or is not whole; all that is wrong is in one message.
    """
    return _LOADERS[head.kind](head, target, draft_length, narrowest)


def _open(directory: Path) -> TensorSource:
    file = directory / f"{_MEDUSA_FILE}.safetensors"
    if file.is_file():
        return SafetensorsSource(directory, (file,))
    file = directory / f"{_MEDUSA_FILE}.pt"
    return TorchSource(directory, (file,)) if file.is_file() else open_directory(directory)
