"""The interface of a checkpoint format: tensors by name, read one at a time."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from emsjax.errors import UserError
from emsjax.loading.sources.int4 import Int4
from emsjax.loading.sources.int8 import Int8
from emsjax.loading.sources.safetensors import SafetensorsSource
from emsjax.loading.sources.torch import TorchSource
from emsjax.models.groups import Groups


class TensorSource(Protocol):
    """The tensors of one checkpoint.

    Attributes:
      name: name of the checkpoint in error messages.
      dtype: the checkpoint's own dtype ("float32", "bfloat16" or "float16"). It is "float32" for
        quantised checkpoints, whose values float32 holds without loss.
      truncated: tensors that the checkpoint lists but whose data is incomplete.
      int8: tensors that the checkpoint holds in int8 with one scale per row.
      int4: tensors that the checkpoint holds in 4 bits with scales per group, and their groups.
      spare: tensors that change nothing, which a model may have no use for.
    """

    name: str
    dtype: str
    truncated: frozenset[str]
    int8: frozenset[str]
    int4: Mapping[str, Groups]
    spare: frozenset[str]

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Returns the shape of every tensor, without reading any data."""

    def read(self, name: str) -> np.ndarray:
        """Returns one tensor; bfloat16 tensors are `ml_dtypes.bfloat16`.

        A writable result belongs to the caller. A read-only result may be a mapped file.
        """

    def read_int8(self, name: str) -> Int8:
        """Returns one of the tensors of `int8` as the checkpoint holds it."""

    def read_int4(self, name: str) -> Int4:
        """Returns one of the tensors of `int4` in the checkpoint's numbers."""


def open_directory(directory: Path) -> TensorSource:
    """Opens the weights of a Hugging Face directory: safetensors if present, or PyTorch pickles.

    Raises:
      UserError: there are no weights, or they are damaged.
    """
    if files := SafetensorsSource.find(directory):
        return SafetensorsSource(directory, files)
    if files := TorchSource.find(directory):
        return TorchSource(directory, files)
    if files := tuple(directory.glob("*.gguf")):
        raise UserError(
            f"{directory} holds a config.json without its weights; to use a GGUF file, name the "
            f"file itself, such as {files[0]}."
        )
    raise UserError(
        f"{directory} holds no weights; add model.safetensors (or the shards listed in "
        "model.safetensors.index.json) or pytorch_model.bin."
    )
