"""What every checkpoint format offers the loader: tensors by name, read one at a time."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from emsjax.errors import UserError
from emsjax.loading.sources.safetensors import SafetensorsSource
from emsjax.loading.sources.torch import TorchSource


class TensorSource(Protocol):
    """Tensors of one checkpoint, under the names its format gives them.

    Attributes:
      name: what an error calls the checkpoint.
      dtype: the checkpoint's own dtype ("float32", "bfloat16" or "float16"); "float32" for
        quantised ones, which that dtype holds without loss.
      truncated: tensors that the checkpoint lists but whose data is not all there.
    """

    name: str
    dtype: str
    truncated: frozenset[str]

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor, without reading any data."""

    def read(self, name: str) -> np.ndarray:
        """One tensor; bfloat16 comes as `ml_dtypes.bfloat16`.

        A writable result is the caller's to keep; a read-only one may be a mapped file.
        """


def open_directory(directory: Path) -> TensorSource:
    """Opens the weights of a Hugging Face directory: safetensors, else PyTorch pickles.

    Raises:
      UserError: no weights there, or damaged ones.
    """
    if files := SafetensorsSource.find(directory):
        return SafetensorsSource(directory, files)
    if files := TorchSource.find(directory):
        return TorchSource(directory, files)
    raise UserError(
        f"{directory} holds no weights: it needs model.safetensors (or the shards named in "
        "model.safetensors.index.json) or pytorch_model.bin."
    )
