import builtins
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_checkpoints import write_shards

from emsjax.errors import UserError
from emsjax.loading.sources.safetensors import SafetensorsSource
from emsjax.loading.sources.source import open_directory

torch = pytest.importorskip("torch")


def tensors(weights: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: torch.from_numpy(value) for name, value in weights.items()}


@pytest.mark.parametrize("kind", ["single", "sharded", "before 1.6"])
def test_reads_every_tensor(tmp_path: Path, weights: dict[str, np.ndarray], kind: str) -> None:
    if kind == "sharded":
        write_shards(tmp_path, tensors(weights), torch.save, "pytorch_model.bin")
    else:
        zipped = kind == "single"
        file = tmp_path / "pytorch_model.bin"
        torch.save(tensors(weights), file, _use_new_zipfile_serialization=zipped)
    source = open_directory(tmp_path)
    assert source.dtype == "float32"
    assert source.shapes() == {name: value.shape for name, value in weights.items()}
    for name, value in weights.items():
        np.testing.assert_array_equal(source.read(name), value)


def test_bfloat16(tmp_path: Path) -> None:
    value = torch.tensor([1.5, -2.0], dtype=torch.bfloat16)
    torch.save({"w": value}, tmp_path / "pytorch_model.bin")
    source = open_directory(tmp_path)
    assert source.dtype == "bfloat16"
    read = source.read("w")
    assert read.dtype == ml_dtypes.bfloat16
    assert read.astype(np.float32).tolist() == [1.5, -2.0]
    assert not read.flags.writeable


def test_safetensors_are_preferred_to_pickles(
    tmp_path: Path, weights: dict[str, np.ndarray]
) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"never read")
    save_file(weights, tmp_path / "model.safetensors")
    assert isinstance(open_directory(tmp_path), SafetensorsSource)


@pytest.mark.parametrize("kept", [0, 100, 20_000])
def test_a_truncated_file_is_named_in_the_error(
    tmp_path: Path, weights: dict[str, np.ndarray], kept: int
) -> None:
    file = tmp_path / "pytorch_model.bin"
    torch.save(tensors(weights), file)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"pytorch_model\.bin is truncated or damaged"):
        open_directory(tmp_path)


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> Any:
            return (open, (str(tmp_path / "proof"), "w"))

    torch.save({"w": Hostile()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="truncated or damaged"):
        open_directory(tmp_path)
    assert not (tmp_path / "proof").exists()


def test_not_named_tensors(tmp_path: Path) -> None:
    torch.save([torch.zeros(2)], tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="holds a list"):
        open_directory(tmp_path)


def test_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"w": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "torch":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"is a PyTorch pickle.*pip install torch.*safetensors"):
        open_directory(tmp_path)
