"""Reads tensors of PyTorch pickles (`pytorch_model.bin`); needs PyTorch."""

import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from emsjax.errors import UserError, foreign
from emsjax.loading.sources.dtypes import own_dtype
from emsjax.loading.sources.only_floats import OnlyFloats
from emsjax.loading.sources.shards import damaged, decoding, find_weight_files

_KEPT_BYTES = 64 << 20  # read from a mapped file before it is mapped again


class TorchSource(OnlyFloats):
    """A `TensorSource` over one or more PyTorch pickles, mapped from disk."""

    truncated: frozenset[str] = frozenset()  # PyTorch rejects a short file as a whole

    def __init__(self, directory: Path, files: Sequence[Path]):
        self.name = str(directory)
        self._mapped = {file: _load(file) for file in files}
        self._files = {name: file for file, held in self._mapped.items() for name in held}
        self._shapes = {
            name: tuple(tensor.shape)
            for held in self._mapped.values()
            for name, tensor in held.items()
        }
        self._bytes_read = Counter[Path]()
        self.dtype = own_dtype(
            str(tensor.dtype).removeprefix("torch.")
            for held in self._mapped.values()
            for tensor in held.values()
        )

    @staticmethod
    def find(directory: Path) -> tuple[Path, ...]:
        """Returns the PyTorch weight files of a Hugging Face directory; empty if it has none."""
        return find_weight_files(directory, "pytorch_model.bin")

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Returns the shape of every tensor."""
        return self._shapes

    def read(self, name: str) -> np.ndarray:
        """Returns one tensor, read-only because it shares the mapped file's memory."""
        with foreign(
            f"tensor {name} in {self._files[name]} cannot be read",
            "use a safetensors copy of the model.",
        ):
            tensor = self._tensor(name)
            if str(tensor.dtype) == "torch.bfloat16":  # `Tensor.numpy` does not support bfloat16
                array = _as_int16(tensor).numpy().view(ml_dtypes.bfloat16)
            else:
                array = tensor.numpy()
            array.flags.writeable = False
            return array

    def _tensor(self, name: str) -> Any:
        """Returns one tensor, mapping its file again after every `_KEPT_BYTES` bytes read.

        Pages that were read stay in memory as long as their mapping does. With a single mapping
        they would add up to a second copy of the model.
        """
        file = self._files[name]
        if self._bytes_read[file] > _KEPT_BYTES and zipfile.is_zipfile(file):
            self._mapped[file] = _load(file)
            self._bytes_read[file] = 0
        tensor = self._mapped[file][name].detach()
        self._bytes_read[file] += tensor.numel() * tensor.element_size()
        return tensor


def _as_int16(tensor: Any) -> Any:
    """Returns the same bytes as int16."""
    import torch

    return tensor.contiguous().view(torch.int16)


def _load(file: Path) -> dict[str, Any]:
    """Returns the tensors of one file.

    Files from before PyTorch 1.6 are not zip archives and cannot be mapped.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{file} is a PyTorch pickle, but PyTorch is not installed; `pip install torch`, or "
            "use a safetensors copy of the model."
        ) from error
    with decoding(file):
        loaded = torch.load(
            file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)
        )
    if not isinstance(loaded, dict):
        raise damaged(file, f"it holds a {type(loaded).__name__}, not named tensors")
    return {name: value for name, value in loaded.items() if isinstance(value, torch.Tensor)}
