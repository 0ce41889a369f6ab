"""Names, paths and files that only another library refuses are refused in one short sentence."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tiny_checkpoints import write_gguf

from emsjax.errors import UserError
from emsjax.host.locks import alone
from emsjax.loading.checkpoint import open_checkpoint
from emsjax.loading.conversion import convert_model
from emsjax.loading.hf.config import complete_config, read_json
from emsjax.loading.hf.tokenizer import load_tokenizer
from emsjax.loading.hub import cached_snapshot
from emsjax.loading.load import load_model
from emsjax.loading.named import named_config
from emsjax.loading.opened import open_model

HERE = Path(__file__).parent
DEEP = "[" * 100_000


def refused(call: Callable[[], Any], match: str | None = None) -> None:
    with pytest.raises(UserError, match=match) as caught:
        call()
    message = str(caught.value)
    assert len(message) < 500
    assert "\n" not in message


NAMES = (
    "models--Qwen--X", "datasets--a/b", "a..b", "a--b", "owner/a--b", "owner/a..b", "owner/a.git",
    "owner/a.", "owner-/a", "a.", "a-", "x" * 97, "o" * 60 + "/" + "n" * 60, "x" * 5000,
    "x/" + "y" * 5000, "~nobody-has-this-name/x", "~nobody-has-this-name", "a/b/c", "", " ", "/",
    "-a", "a b", "ä/ö", "\x1b[31m", "a\x00b", "a/b\n", "https://huggingface.co/a/b", "C:\\model",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=[repr(name[:24]) for name in NAMES])
def test_names_that_no_model_has(name: str) -> None:
    refused(lambda: load_model(name))
    refused(lambda: named_config(name))


@pytest.mark.parametrize("name", ["models--Qwen--X", "a..b", "owner/a--b", "owner/a.git"])
def test_names_that_the_hub_refuses_are_not_called_a_lost_connection(name: str) -> None:
    refused(lambda: load_model(name), "the Hugging Face hub takes no such name")
    if "/" in name:
        refused(lambda: named_config(name), "the Hugging Face hub takes no such name")


@pytest.mark.parametrize("error", [ValueError("a\nb"), KeyError("x" * 9999), RecursionError()])
def test_a_failing_hub_client(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    refused(lambda: cached_snapshot("owner/name"), "cache cannot be searched")
    refused(lambda: named_config("owner/name"), "cannot be reached")


@pytest.mark.parametrize("content", [DEEP, "9" * 5000, '"\ud800', b"\xff", "", "nul"])
def test_damaged_json(content: str | bytes, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode(errors="replace"))
    refused(lambda: read_json(file), "is not (valid JSON|a JSON object)")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes(file.read_bytes())
    told = "the tokenizer files in|is not (valid JSON|a JSON object)"
    refused(lambda: load_tokenizer(tmp_path), told)


def test_a_configuration_that_transformers_refuses_with_a_long_text() -> None:
    given = {
        "model_type": "llama",
        "rope_parameters": {"rope_type": "x" * 5000},
        "hidden_size": "a",
    }
    refused(lambda: complete_config(given, {"llama"}, "c.json"), "is rejected by transformers")


def safetensors(header: str) -> bytes:
    return len(header).to_bytes(8, "little") + header.encode()


HEADERS = (
    DEEP,
    '{"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 4]}}',
    '{"a": {"dtype": "F32", "shape": [1], "data_offsets": ["0", 4]}}',
    '{"a": {"dtype": [], "shape": [1], "data_offsets": [0, 4]}}',
    '{"a": 3}',
    '{"a": {"dtype": "F32", "shape": 3, "data_offsets": [0, 4]}}',
)


@pytest.mark.parametrize("header", HEADERS, ids=range(len(HEADERS)))
def test_safetensors(header: str, hf_dir: Path) -> None:
    (hf_dir / "model.safetensors").write_bytes(safetensors(header) + bytes(8))
    refused(lambda: load_model(str(hf_dir)))


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x02}q\x00.", b"no" * 99]
)
def test_torch_pickles(content: bytes, hf_dir: Path) -> None:
    (hf_dir / "model.safetensors").unlink()
    (hf_dir / "pytorch_model.bin").write_bytes(content)
    refused(lambda: load_model(str(hf_dir)))


@pytest.mark.parametrize("index", [DEEP, "[]", '{"weight_map": {"a": 3}}', '{"weight_map": []}'])
def test_shard_indices(index: str, hf_dir: Path) -> None:
    (hf_dir / "model.safetensors").unlink()
    (hf_dir / "model.safetensors.index.json").write_text(index)
    refused(lambda: load_model(str(hf_dir)), "is not a readable shard index")


CHANGES: tuple[dict[str, Any], ...] = (
    {"dtype": "nonsense"},
    {"dtype": ["<f4", 3]},
    {"shape": ["x", 3], "chunks": ["x", 3]},
    {"shape": 3},
    {"shape": [-1], "chunks": [-1]},
)


def test_orbax_arrays(hf_dir: Path) -> None:
    output = hf_dir.parent / "converted"
    convert_model(open_model(hf_dir, {"llama"}), output)
    meta = next((output / "params").glob("*/.zarray"))
    whole = json.loads(meta.read_text())
    for change in CHANGES:
        meta.write_text(json.dumps(whole | change))
        refused(lambda: load_model(str(output)))
    (output / "emsjax.json").write_text('{"format": 1, "no": 3}')
    refused(lambda: open_checkpoint(output), "is damaged")


def vocabulary(**changes: Any) -> Callable[[gguf.GGUFWriter], None]:
    fields = {
        "model": "gpt2",
        "tokens": [f"t{n}" for n in range(64)],
        "merges": ["t1 t2"],
        "token_type": [1] * 64,
    } | changes

    def write(writer: gguf.GGUFWriter) -> None:
        for name, value in fields.items():
            add = writer.add_array if isinstance(value, list) else writer.add_string
            add(f"tokenizer.ggml.{name}", value)

    return write


@pytest.mark.parametrize(
    "changes",
    [
        {"merges": ["t1 nothing"]},
        {"merges": ["t1"]},
        {"merges": ["t1 t2 t3"]},
        {"tokens": "text"},
        {"model": "llama", "scores": [0.0]},
        {"model": "llama", "scores": "text"},
        {"token_type": "text"},
    ],
    ids=str,
)
def test_gguf_tokenizers(changes: dict[str, Any], tmp_path: Path) -> None:
    tensors = {
        "model.norm.weight": np.zeros(64, np.float32),
        "model.embed_tokens.weight": np.zeros((64, 64), np.float32),
    }
    file = write_gguf(tmp_path / "m.gguf", tensors, extra=vocabulary(**changes))
    refused(open_model(file, {"llama"}).tokenizer, "the tokenizer in .* cannot be read")


_CONVERTS = """
import sys
from pathlib import Path
import pytest, tiny_models
tiny_models.install(pytest.MonkeyPatch())
from emsjax.convert import main
from emsjax.loading import load
sys.stdin.read()
sys.exit(main([sys.argv[1], sys.argv[2]]))
"""


@pytest.mark.slow
def test_two_conversions_to_one_directory(hf_dir: Path) -> None:
    output = hf_dir.parent / "converted"
    both = [
        subprocess.Popen(
            [sys.executable, "-c", _CONVERTS, str(hf_dir), str(output)],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(HERE)},
        )
        for _ in range(2)
    ]
    for process in both:
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
    said = [process.communicate(timeout=120)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], said
    (refusal,) = [err for err, process in zip(said, both, strict=True) if process.returncode == 2]
    assert "another process is writing" in refusal or "already exists" in refusal
    assert load_model(str(output)).name == "tiny-llama"
    assert not list(hf_dir.parent.glob(".converted*"))


def test_a_default_model_waits_for_a_lock_that_a_dead_process_does_not_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from emsjax.loading import default_model

    lock = tmp_path / "cache" / f".{default_model.DEFAULT_NAME}.lock"
    lock.parent.mkdir()
    lock.touch()  # as a killed process leaves it
    monkeypatch.setattr(default_model, "hub_snapshot", lambda _: tmp_path)
    assert default_model.default_model_dir(lambda _line: None) == tmp_path
    with alone(lock, "held"):
        assert lock.exists()
    assert not lock.exists()
