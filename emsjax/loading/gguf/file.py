"""A GGUF file: its metadata, and its tensors under their Hugging Face names."""

import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from gguf.quants import dequantize

from emsjax.errors import UserError, first_of, foreign
from emsjax.loading.gguf.architectures import ARCHITECTURES
from emsjax.loading.gguf.int4 import KEPT, read_int4
from emsjax.loading.gguf.reader import GgufReader
from emsjax.loading.gguf.scales import are_finite
from emsjax.loading.hf.keys import shown
from emsjax.loading.sources.buffers import aligned_empty
from emsjax.loading.sources.dtypes import own_dtype
from emsjax.loading.sources.int4 import Int4
from emsjax.loading.sources.only_floats import OnlyFloats
from emsjax.loading.sources.shards import damaged

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
# Rotary factors belong to the configuration, see `gguf_config`.
NOT_WEIGHTS = frozenset(
    {"rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"}
)
_FLOAT32_MAX = 3.4e38
_ROWS = 2048  # rows to dequantise at a time


class GgufFile(OnlyFloats):
    """A `TensorSource` over one GGUF file, dequantising one tensor at a time to float32.

    Attributes:
      path: the file.
      architecture: GGUF's name for the model family, one of `ARCHITECTURES`.
      layout: how the architecture's tensors are stored.
      truncated: tensors whose data is incomplete.
      dtype: the 16-bit dtype that all matrices have, otherwise "float32".
      int4: matrices of types whose 4 bits can be kept, and their groups.
    """

    def __init__(self, path: Path):
        self.path, self.name = path, str(path)
        with foreign(f"{path} is not a complete GGUF file", "download or copy it again."):
            self._reader = GgufReader(path)
        self.architecture = str(self.get("general.architecture", "unknown"))
        if self.architecture not in ARCHITECTURES:
            raise UserError(
                f"{path} has architecture {self.architecture!r}, but only GGUF files of "
                f"{', '.join(ARCHITECTURES)} are supported; use the model's safetensors copy "
                "instead."
            )
        self.layout = ARCHITECTURES[self.architecture]
        self.truncated = frozenset(self._hf_name(name) for name, _ in self._reader.truncated)
        matrices = {t.tensor_type.name for t in self._tensors.values() if len(t.shape) > 1}
        # In a file of mixed types the quantised ones would lose precision in 16 bits.
        self.dtype = own_dtype(matrices) if len(matrices) == 1 else "float32"
        self.int4 = {
            name: KEPT[tensor.tensor_type]
            for name, tensor in self._tensors.items()
            if tensor.tensor_type in KEPT and len(tensor.shape) == 2
        }

    def get(self, key: str, default: Any = None) -> Any:
        """Returns a metadata value, or `default`; `{arch}` in the key means the architecture."""
        if "{arch}" in key:
            key = key.replace("{arch}", self.architecture)
        found = self.metadata.get(key)
        return default if found is None else found

    @cached_property
    def metadata(self) -> Mapping[str, Any]:
        """All metadata, by its full key."""
        return _Contents(self._reader.fields, self.path)

    def whole(self, key: str, default: int | None = None) -> int:
        """Returns a whole number of 1 or more, or that of all layers from a list of equal ones.

        Raises:
          UserError: the file lacks the value and there is no default, or it is something else.
        """
        value = self.need(key) if default is None else self.get(key, default)
        if isinstance(value, list) and value and all(each == value[0] for each in value):
            value = value[0]
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
        raise self._wrong(key, value, "a whole number of 1 or more, the same for all layers")

    def number(self, key: str, default: float | None = None) -> float:
        """Returns a positive number, as the shortest decimal of its float32: 1e-05, not 9.99e-06.

        Raises:
          UserError: the file lacks the value and there is no default, or it is something else.
        """
        value = self.need(key) if default is None else self.get(key, default)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and 0 < value < _FLOAT32_MAX:
            return float(str(np.float32(value)))
        raise self._wrong(key, value, "a finite number above 0")

    def token(self, name: str) -> int | None:
        """Returns the id of a special token, such as "eos", or None if the file names none.

        Raises:
          UserError: it is not a whole number.
        """
        key = f"tokenizer.ggml.{name}_token_id"
        value = self.get(key)
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        raise self._wrong(key, value, "a whole number, the id of a token")

    def _wrong(self, key: str, value: Any, allowed: str) -> UserError:
        name = key.replace("{arch}", self.architecture)
        return UserError(
            f"{self.path} has {name}={shown(value)} in its metadata, but it must be {allowed}; use "
            "another GGUF file."
        )

    def need(self, key: str) -> Any:
        """Returns a required metadata value; `{arch}` in the key means the architecture.

        Raises:
          UserError: the file lacks the value.
        """
        value = self.get(key)
        if value is None:
            name = key.replace("{arch}", self.architecture)
            raise UserError(f"{self.path} lacks the metadata {name}; use another GGUF file.")
        return value

    @cached_property
    def _tensors(self) -> Mapping[str, Any]:
        whole = [tensor for tensor in self._reader.tensors if tensor.name not in NOT_WEIGHTS]
        return {self._hf_name(tensor.name): tensor for tensor in whole}

    def _hf_name(self, name: str) -> str:
        return hf_name(name, self.layout.names)

    def factors(self, name: str = "rope_freqs.weight") -> np.ndarray | None:
        """Returns divisors of the rotary frequencies, float32[pairs], or None if there are none."""
        found = [tensor for tensor in self._reader.tensors if tensor.name == name]
        return np.asarray(found[0].data, np.float32) if found else None

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Returns the shape of every tensor in Hugging Face's order, [out, in]."""
        whole = {name: tuple(t.shape[::-1].tolist()) for name, t in self._tensors.items()}
        return whole | {self._hf_name(name): shape for name, shape in self._reader.truncated}

    def read(self, name: str) -> np.ndarray:
        """Returns one tensor, dequantised to float32 and in Hugging Face's order of rows.

        Raises:
          UserError: the gguf package cannot dequantise the tensor, or a scale is not finite.
        """
        tensor = self._tensors[name]
        shape = tuple(tensor.shape[::-1].tolist())
        try:
            weight = _dequantised(self._mapped(tensor), tensor.tensor_type, shape)
        except NotImplementedError as error:
            raise UserError(
                f"tensor {name} in {self.path} is quantised as {tensor.tensor_type.name}, which "
                "the gguf package cannot dequantise; use another GGUF file of the model."
            ) from error
        if self.layout.norm_offset and name.endswith("norm.weight"):
            return weight - np.float32(self.layout.norm_offset)
        return self._in_order(name, weight)

    def read_int4(self, name: str) -> Int4:
        """Returns one of the tensors of `int4` in the file's numbers, with rows as `read` does.

        Raises:
          UserError: a scale is not a finite number.
        """
        tensor = self._tensors[name]
        found = read_int4(self._mapped(tensor), tensor.tensor_type)
        return found.changed(lambda rows: self._in_order(name, rows))

    def _mapped(self, tensor: Any) -> np.ndarray:
        """Maps a tensor's bytes: a mapping of its own leaves memory together with the tensor."""
        where = int(tensor.data_offset)
        data = np.memmap(self.path, tensor.data.dtype, "r", where, tensor.data.shape)
        if not are_finite(data, tensor.tensor_type):
            whole = self._tensors.items()
            found = [name for name, t in whole if not are_finite(t.data, t.tensor_type)]
            raise UserError(
                f"{first_of(found)} in {self.path}: scales are not finite numbers; download the "
                "model again."
            )
        return data

    def _in_order(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Returns what belongs to a tensor's rows in Hugging Face's order."""
        heads = self._permuted_heads(name)
        return _unpermuted(rows, heads) if heads else rows

    def _permuted_heads(self, name: str) -> int:
        """Returns the heads of a tensor whose rows llama.cpp's converter permuted, otherwise 0."""
        if not self.layout.permuted:
            return 0
        if ".q_proj." in name:
            return self.whole("{arch}.attention.head_count")
        return self.kv_heads if ".k_proj." in name else 0

    @property
    def kv_heads(self) -> int:
        """Number of key/value heads."""
        heads = self.whole("{arch}.attention.head_count")
        return self.whole("{arch}.attention.head_count_kv", heads)


class _Contents(Mapping[str, Any]):
    """The values of metadata, which the package decodes anew for each access, decoded once."""

    def __init__(self, fields: Mapping[str, Any], path: Path):
        self._fields, self._path, self._known = fields, path, dict[str, Any]()

    def __getitem__(self, key: str) -> Any:
        if key not in self._known:
            field = self._fields[key]
            try:
                self._known[key] = field.contents()
            except Exception as error:  # the package checks little of what it decodes
                raise damaged(self._path, f"its metadata {shown(key)}: {error}") from error
        return self._known[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)


def hf_name(name: str, of_layer: Mapping[str, str]) -> str:
    """Returns the Hugging Face name of a GGUF tensor, or `name` itself if there is none.

    Example: `blk.3.attn_q.weight` is `model.layers.3.self_attn.q_proj.weight`.

    Args:
      name: GGUF's name.
      of_layer: the names of a layer's tensors, and their Hugging Face names.
    """
    if match := re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name):
        layer, part, kind = match.groups()
        if part in of_layer:
            return f"model.layers.{layer}.{of_layer[part]}.{kind}"
    stem, _, kind = name.rpartition(".")
    return f"{_NAMES[stem]}.{kind}" if stem in _NAMES else name


def _dequantised(data: np.ndarray, kind: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Dequantises `data` to float32[shape].

    A matrix is converted `_ROWS` rows at a time, because the gguf package's temporaries are as
    large as its result.
    """
    if len(shape) < 2:
        return np.array(dequantize(data, kind))
    weight = aligned_empty(shape, np.float32)
    for start in range(0, len(data), _ROWS):
        weight[start : start + _ROWS] = dequantize(data[start : start + _ROWS], kind)
    return weight


def _unpermuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Reorders each head's rows from GGUF's interleaved rotary pairs to Hugging Face's halves."""
    pairs = weight.reshape(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weight.shape)
