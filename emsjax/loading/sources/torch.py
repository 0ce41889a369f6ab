"""Tensors of PyTorch pickles (`pytorch_model.bin`), where PyTorch is installed."""

import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from emsjax.errors import UserError
from emsjax.loading.sources.shards import damaged, find_weight_files

_KEPT_BYTES = 64 << 20  # of a mapped file, before it is mapped anew


class TorchSource:
    """A `TensorSource` over one or more PyTorch pickles, mapped from disk."""

    truncated: frozenset[str] = frozenset()  # PyTorch refuses a short file as a whole

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
        self.dtype = _own_dtype(self._mapped.values())

    @staticmethod
    def find(directory: Path) -> tuple[Path, ...]:
        """PyTorch weight files in a Hugging Face directory; empty where there are none."""
        return find_weight_files(directory, "pytorch_model.bin")

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor."""
        return self._shapes

    def read(self, name: str) -> np.ndarray:
        """One tensor, sharing the mapped file's memory, and read-only for that reason."""
        tensor = self._tensor(name)
        if str(tensor.dtype) == "torch.bfloat16":  # numpy has no bfloat16 of its own
            array = _as_int16(tensor).numpy().view(ml_dtypes.bfloat16)
        else:
            array = tensor.numpy()
        array.flags.writeable = False
        return array

    def _tensor(self, name: str) -> Any:
        """One tensor of a mapping that is renewed now and then.

        Pages stay in memory as long as their mapping: all of them would be a second model.
        """
        file = self._files[name]
        if self._bytes_read[file] > _KEPT_BYTES and zipfile.is_zipfile(file):
            self._mapped[file] = _load(file)
            self._bytes_read[file] = 0
        tensor = self._mapped[file][name].detach()
        self._bytes_read[file] += tensor.numel() * tensor.element_size()
        return tensor


def _own_dtype(files: Iterable[Mapping[str, Any]]) -> str:
    """The dtype that most tensors have; "float32" for any but halves."""
    dtypes = Counter(str(tensor.dtype) for held in files for tensor in held.values())
    common = dtypes.most_common(1)[0][0].removeprefix("torch.") if dtypes else "float32"
    return common if common in ("bfloat16", "float16") else "float32"


def _as_int16(tensor: Any) -> Any:
    """The same bytes as int16."""
    import torch

    return tensor.contiguous().view(torch.int16)


def _load(file: Path) -> dict[str, Any]:
    """Tensors of one file. Files older than PyTorch 1.6 are no zip and cannot be mapped."""
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{file} is a PyTorch pickle and PyTorch is not installed: `pip install torch`, "
            "or use a safetensors copy of the model."
        ) from error
    try:
        loaded = torch.load(
            file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)
        )
    except Exception as error:  # PyTorch raises many kinds for damaged and for hostile files
        raise damaged(file, error) from error
    if not isinstance(loaded, dict):
        raise damaged(file, f"it holds a {type(loaded).__name__}, not named tensors")
    return {name: value for name, value in loaded.items() if isinstance(value, torch.Tensor)}
