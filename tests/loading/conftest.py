from pathlib import Path

import numpy as np
import pytest
import tiny_models
from safetensors.numpy import save_file
from tiny_checkpoints import llama_weights, write_config


@pytest.fixture
def real_models() -> None:
    """Requests the project's own model families instead of the stand-in."""


@pytest.fixture(autouse=True)
def stand_in(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Installs the stand-in family, separate caches for each test, and no network."""
    if "real_models" not in request.fixturenames:
        tiny_models.install(monkeypatch)
    monkeypatch.setenv("EMSJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def weights() -> dict[str, np.ndarray]:
    """Returns the tensors of a tiny Llama in float32, under their Hugging Face names."""
    return llama_weights()


@pytest.fixture
def hf_dir(tmp_path: Path, weights: dict[str, np.ndarray]) -> Path:
    """Returns a Hugging Face directory with one safetensors file."""
    directory = tmp_path / "tiny-llama"
    directory.mkdir()
    write_config(directory)
    save_file(weights, directory / "model.safetensors")
    return directory
