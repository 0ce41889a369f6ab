"""Tensors of PyTorch pickles (`pytorch_model.bin`), where PyTorch is installed."""

import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from emsjax.errors import UserError
from emsjax.loading.shards import damaged, find_weight_files


class TorchSource:
    """A `TensorSource` over one or more PyTorch pickles, mapped from disk."""

    truncated: frozenset[str] = frozenset()  # PyTorch refuses a short file as a whole

    def __init__(self, directory: Path, files: Sequence[Path]):
        self.name = str(directory)
        self._tensors: dict[str, Any] = {}
        for file in files:
            self._tensors |= _load(file)
        dtypes = Counter(str(tensor.dtype) for tensor in self._tensors.values())
        common = dtypes.most_common(1)[0][0].removeprefix("torch.") if dtypes else "float32"
        self.dtype = common if common in ("bfloat16", "float16") else "float32"

    @staticmethod
    def find(directory: Path) -> tuple[Path, ...]:
        """PyTorch weight files in a Hugging Face directory; empty where there are none."""
        return find_weight_files(directory, "pytorch_model.bin")

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor."""
        return {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor, sharing the mapped file's memory, and read-only for that reason."""
        tensor = self._tensors[name].detach()
        if str(tensor.dtype) == "torch.bfloat16":  # numpy has no bfloat16 of its own
            array = _as_int16(tensor).numpy().view(ml_dtypes.bfloat16)
        else:
            array = tensor.numpy()
        array.flags.writeable = False
        return array


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
