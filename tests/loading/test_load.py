"""Finding a model by name or path, and the values loaded along with it."""

import json
import sys
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file
from tiny_checkpoints import CONFIG, to_bfloat16, write_config, write_gguf

from emsjax.errors import UserError
from emsjax.loading import hub
from emsjax.loading.conversion import convert_model
from emsjax.loading.dtypes import dtype_for_device
from emsjax.loading.hf.config import complete_config, eos_token_ids
from emsjax.loading.load import LoadedModel, find_model, load_model

Weights = dict[str, np.ndarray]


def embed(loaded: LoadedModel) -> jax.Array:
    model: Any = loaded.model
    return model.embed[...]


@pytest.mark.parametrize("form", ["directory", "gguf file", "gguf directory", "converted"])
def test_every_format(tmp_path: Path, hf_dir: Path, weights: Weights, form: str) -> None:
    path = hf_dir
    if "gguf" in form:
        path = tmp_path / "gguf"
        path.mkdir()
        file = write_gguf(path / "tiny.gguf", weights)
        path = file if form == "gguf file" else path
    if form == "converted":
        path = tmp_path / "converted"
        convert_model(find_model(hf_dir), path)
    loaded = load_model(str(path))
    np.testing.assert_array_equal(embed(loaded), weights["model.embed_tokens.weight"])
    assert embed(loaded).dtype == jnp.float32
    assert loaded.eos_token_ids == (2,)
    assert loaded.tokenizer is None
    assert loaded.hf_config["model_type"] == "llama"
    assert loaded.name == ("tiny" if "gguf" in form else "tiny-llama")


def test_project_families_load(tmp_path: Path, weights: Weights, real_models: None) -> None:
    write_config(tmp_path)
    save_file(weights, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path)
    state = dict(nnx.to_flat_state(nnx.state(loaded.model)))
    assert all(isinstance(leaf[...], jax.Array) for leaf in state.values())


def test_float32_on_cpu_unless_asked(hf_dir: Path, weights: Weights) -> None:
    save_file(to_bfloat16(weights), hf_dir / "model.safetensors")
    assert embed(load_model(hf_dir)).dtype == jnp.float32
    assert embed(load_model(hf_dir, dtype="bfloat16")).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("own", "expected"),
    [("float32", "bfloat16"), ("bfloat16", "bfloat16"), ("float16", "float16")],
)
def test_auto_on_an_accelerator(monkeypatch: pytest.MonkeyPatch, own: str, expected: str) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert dtype_for_device("auto", own) == expected
    assert dtype_for_device("float32", own) == "float32"


def test_unknown_dtype(hf_dir: Path) -> None:
    with pytest.raises(UserError, match=r"dtype 'int8' is unknown; choose auto, float32"):
        load_model(hf_dir, dtype="int8")


@pytest.mark.parametrize("name", ["no/such/model", "./nowhere", "-x", "a b"])
def test_path_that_does_not_exist(name: str) -> None:
    with pytest.raises(UserError, match="does not exist; name a model directory"):
        load_model(name)


def test_hub_id_when_offline() -> None:
    with pytest.raises(UserError, match=r"'some/model' .* hub cannot be reached"):
        load_model("some/model")


def in_hub_cache(tmp_path: Path, weights: Weights, **files: str) -> Path:
    """Writes a snapshot as the hub's client does."""
    repo = tmp_path / "hub" / "models--some--model"
    snapshot = repo / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    write_config(snapshot)
    if weights:
        save_file(weights, snapshot / "model.safetensors")
    return snapshot


def test_hub_cache(tmp_path: Path, weights: Weights) -> None:
    in_hub_cache(tmp_path, weights)
    assert load_model("some/model").name == "some/model"


def test_incomplete_hub_cache(tmp_path: Path) -> None:
    in_hub_cache(tmp_path, {})
    with pytest.raises(UserError, match="hub cannot be reached"):
        load_model("some/model")


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        (
            ["model.safetensors", "pytorch_model.bin", "flax_model.msgpack", "config.json"],
            ["model.safetensors", "config.json"],
        ),
        (["pytorch_model.bin", "onnx/model.safetensors"], ["pytorch_model.bin"]),
        (["model.bin", "x.gguf", "original/params.json"], ["model.bin"]),
        (
            ["additional_chat_templates/tool_use.jinja"],
            ["additional_chat_templates/tool_use.jinja"],
        ),
        (["custom_generate/generate.py", "setup.py"], ["custom_generate/generate.py"]),
        (["a[1].json"], ["a[[]1].json"]),
    ],
)
def test_only_one_kind_of_weights_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], wanted: list[str]
) -> None:
    asked: dict[str, Any] = {}

    def snapshot_download(repo_id: str, **options: Any) -> str:
        if options.get("local_files_only"):
            from huggingface_hub.errors import LocalEntryNotFoundError

            raise LocalEntryNotFoundError("not there")
        asked.update(options)
        return str(tmp_path)

    siblings = [types.SimpleNamespace(rfilename=name) for name in files]
    info = types.SimpleNamespace(siblings=siblings)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: info)
    assert hub.hub_snapshot("some/model") == tmp_path
    assert sorted(asked["allow_patterns"]) == sorted(wanted)


def test_a_hub_model_of_gguf_files_only(monkeypatch: pytest.MonkeyPatch) -> None:
    info = types.SimpleNamespace(siblings=[types.SimpleNamespace(rfilename="x.Q8_0.gguf")])
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: info)
    with pytest.raises(UserError, match="holds only GGUF files; download one"):
        hub.hub_snapshot("some/model")


def test_unknown_family(hf_dir: Path) -> None:
    write_config(hf_dir, model_type="mamba")
    with pytest.raises(UserError, match=r"model type 'mamba'.* families: llama"):
        load_model(hf_dir)


def test_config_that_transformers_rejects(hf_dir: Path) -> None:
    write_config(hf_dir, num_hidden_layers="many")
    with pytest.raises(UserError, match=r"config\.json is rejected by transformers"):
        load_model(hf_dir)


def test_defaults_are_filled_in() -> None:
    config = complete_config({"model_type": "llama"}, {"llama"}, "x")
    assert config["hidden_act"] == "silu"
    assert config["rope_parameters"] == {"rope_theta": 10000.0, "rope_type": "default"}
    json.dumps(config)


def test_empty_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no model; name a directory with a config\.json"):
        load_model(tmp_path)


def test_directory_with_two_gguf_files(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").touch()
    (tmp_path / "b.gguf").touch()
    with pytest.raises(UserError, match=r"several GGUF files \(a.gguf, b.gguf\); name one"):
        load_model(tmp_path)


def test_end_of_text_ids(hf_dir: Path) -> None:
    (hf_dir / "generation_config.json").write_text('{"eos_token_id": [5, 6]}')
    assert load_model(hf_dir).eos_token_ids == (5, 6)
    assert eos_token_ids({}, {"eos_token_id": None}, {"eos_token_id": 3}) == (3,)
    assert eos_token_ids({}) == ()


def test_other_tokenizer(hf_dir: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    saved = tmp_path / "words"
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(saved)
    tokenizer = load_model(hf_dir, tokenizer=str(saved)).tokenizer
    assert tokenizer is not None
    assert tokenizer.encode("a") == [0]


def test_a_tokenizer_that_does_not_exist_is_named_by_its_option(hf_dir: Path) -> None:
    with pytest.raises(UserError, match=r"^tokenizer='no/such/one': model 'no/such/one' does not"):
        load_model(hf_dir, tokenizer="no/such/one")


def test_tokenizer_directory_without_one(hf_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no tokenizer files"):
        load_model(hf_dir, tokenizer=str(tmp_path / "empty"))


def test_nothing_is_initialised(hf_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is built from shapes, so that its constructor sees tracers, never device arrays."""
    tiny: Any = sys.modules["emsjax.models.decoder"].DecoderLM
    seen = []

    class Watched(tiny):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            seen.append(isinstance(self.norm[...], jax.core.Tracer))

    monkeypatch.setattr(sys.modules["emsjax.models.decoder"], "DecoderLM", Watched)
    load_model(hf_dir)
    assert seen == [True]
    assert CONFIG["model_type"] == "llama"


def test_a_file_that_may_not_be_read(hf_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open

    def refuse(file: Path, *args: Any, **options: Any) -> Any:
        if file.name == "model.safetensors":
            raise PermissionError(13, "Permission denied", str(file))
        return opened(file, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read \(Permission denied\)"):
        find_model(hf_dir)
