import json
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_checkpoints import to_bfloat16, write_shards

from emsjax.errors import UserError
from emsjax.loading.sources.source import open_directory

Weights = dict[str, np.ndarray]


@pytest.mark.parametrize("sharded", [False, True])
def test_reads_every_tensor(tmp_path: Path, weights: Weights, sharded: bool) -> None:
    if sharded:
        write_shards(tmp_path, weights, save_file)
    else:
        save_file(weights, tmp_path / "model.safetensors")
    source = open_directory(tmp_path)
    assert source.shapes() == {name: value.shape for name, value in weights.items()}
    assert source.dtype == "float32"
    for name, value in weights.items():
        np.testing.assert_array_equal(source.read(name), value)


def test_bfloat16_is_kept(tmp_path: Path, weights: Weights) -> None:
    halves = to_bfloat16(weights)
    save_file(halves, tmp_path / "model.safetensors")
    source = open_directory(tmp_path)
    assert source.dtype == "bfloat16"
    read = source.read("lm_head.weight")
    assert read.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(read, halves["lm_head.weight"])


def test_tensors_are_read_only(hf_dir: Path) -> None:
    assert not open_directory(hf_dir).read("lm_head.weight").flags.writeable


def test_empty_tensor(tmp_path: Path) -> None:
    save_file({"nothing": np.zeros((0, 3), np.float32)}, tmp_path / "model.safetensors")
    assert open_directory(tmp_path).read("nothing").shape == (0, 3)


def test_cut_off_tensors_are_listed(hf_dir: Path) -> None:
    file = hf_dir / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-70_000])
    assert open_directory(hf_dir).truncated


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "ends within its header"),
        (b"\x10\0\0", "ends within its header"),
        (struct.pack("<Q", 10_000) + b"{}", "ends within its header"),
        (struct.pack("<Q", 4) + b"{{{{", "not JSON"),
        (struct.pack("<Q", 2) + b"[]", "not a JSON object"),
        (struct.pack("<Q", 8) + b'{"a": 1}', "entry for tensor a"),
    ],
)
def test_damaged_header(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=rf"model\.safetensors is truncated or damaged.*{reason}"):
        open_directory(tmp_path)


def test_unreadable_dtype(tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F6_E2M3", "shape": [2], "data_offsets": [0, 2]}})
    data = struct.pack("<Q", len(header)) + header.encode() + b"ab"
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(UserError, match=r"tensor w in .* has dtype F6_E2M3"):
        open_directory(tmp_path).read("w")


def test_missing_shard_is_named(tmp_path: Path, weights: Weights) -> None:
    first, second = write_shards(tmp_path, weights, save_file)
    second.unlink()
    with pytest.raises(UserError, match=rf"lacks {second.name}, listed in model"):
        open_directory(tmp_path)
    assert first.is_file()


@pytest.mark.parametrize("index", ["{", "{}", "[]"])
def test_damaged_index(tmp_path: Path, index: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match="not a readable shard index"):
        open_directory(tmp_path)


def test_no_weights(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no weights"):
        open_directory(tmp_path)
