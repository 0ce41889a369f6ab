"""GGUF metadata that can change the text is honoured as in llama.cpp, or refused by name."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tiny_checkpoints import write_config, write_gguf

from emsjax.errors import UserError
from emsjax.loading.conversion import convert_model
from emsjax.loading.gguf.config import gguf_config
from emsjax.loading.gguf.file import GgufFile
from emsjax.loading.gguf.metadata import check_metadata
from emsjax.loading.load import find_model

Weights = dict[str, np.ndarray]
SUPPORTED = ("llama", "qwen2", "qwen3")


def add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    kinds = {bool: "bool", int: "uint32", float: "float32", str: "string", list: "array"}
    getattr(writer, f"add_{kinds[type(value)]}")(key, value)


def with_keys(path: Path, weights: Weights, **keys: Any) -> GgufFile:
    """Writes a file with metadata; `__` in a name stands for a point."""

    def extra(writer: gguf.GGUFWriter) -> None:
        for key, value in keys.items():
            name = key.replace("__", ".")
            general = name.startswith(("general.", "tokenizer.", "split.", "adapter.", "tool."))
            add(writer, name if general else f"llama.{name}", value)

    return GgufFile(write_gguf(path / "m.gguf", weights, extra=extra))


def rope(path: Path, weights: Weights, **keys: Any) -> dict[str, Any]:
    return gguf_config(with_keys(path, weights, **keys), SUPPORTED)["rope_parameters"]


LINEAR = {"rope_theta": 5e5, "rope_type": "linear", "factor": 4.0}


def test_a_factor_without_a_type_is_linear(tmp_path: Path, weights: Weights) -> None:
    assert rope(tmp_path, weights, rope__scaling__factor=4.0) == LINEAR


def test_scale_linear(tmp_path: Path, weights: Weights) -> None:
    assert rope(tmp_path, weights, rope__scale_linear=4.0) == LINEAR


def test_type_none_ignores_the_factor(tmp_path: Path, weights: Weights) -> None:
    keys = {"rope__scaling__type": "none", "rope__scaling__factor": 4.0}
    assert rope(tmp_path, weights, **keys)["rope_type"] == "default"


def test_yarn_betas(tmp_path: Path, weights: Weights) -> None:
    keys = {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0}
    keys |= {"rope__scaling__original_context_length": 32}
    keys |= {"rope__scaling__yarn_beta_fast": 16.0, "rope__scaling__yarn_beta_slow": 2.0}
    found = rope(tmp_path, weights, **keys)
    assert (found["beta_fast"], found["beta_slow"]) == (16.0, 2.0)
    assert found["original_max_position_embeddings"] == 32


REFUSED: list[dict[str, Any]] = [
    {"rope__dimension_count": 8},
    {"rope__scaling__factor": 0.0},
    {"rope__scaling__factor": float("nan")},
    {"rope__scale_linear": -1.0},
    {"rope__scaling__attn_factor": 0.5},
    {"rope__scaling__yarn_log_multiplier": 0.1},
    {"rope__scaling__yarn_ext_factor": 0.5},
    {"rope__dimension_sections": [1, 2, 3, 4]},
    {"attention__value_length": 8},
    {"attention__sliding_window": 64},
    {"attention__causal": False},
    {"attention__scale": 0.5},
    {"logit_scale": 0.5},
    {"expert_count": 8},
    {"some_new_key": 1},
    {"tokenizer__ggml__add_eos_token": True},
    {"tokenizer__ggml__precompiled_charsmap": [1, 2]},
    {"tokenizer__ggml__eot_token_id": [1, 2]},
    {"tokenizer__ggml__bos_token_id": 1.5},
    {"general__sampling__mirostat": 2},
    {"general__sampling__penalty_repeat": 1.5},
]


@pytest.mark.parametrize("keys", REFUSED, ids=str)
def test_refused_by_name(tmp_path: Path, weights: Weights, keys: dict[str, Any]) -> None:
    name = next(iter(keys)).replace("__", ".").removeprefix("rope.scaling.")
    with pytest.raises(UserError, match=name) as caught:
        gguf_config(with_keys(tmp_path, weights, **keys), SUPPORTED)
    assert len(str(caught.value)) < 500


def test_harmless_keys(tmp_path: Path, weights: Weights) -> None:
    keys = {"vocab_size": 64, "rope__dimension_count": 16, "attention__causal": True}
    keys |= {"general__size_label": "1B", "tool__quantized_by": "x", "expert_count": 0}
    keys |= {"rope__scaling__finetuned": True, "tokenizer__ggml__add_eos_token": False}
    keys |= {"general__sampling__temp": 0.6, "tokenizer__chat_template__tool_use": "x"}
    gguf_config(with_keys(tmp_path, weights, **keys), SUPPORTED)


def test_adapters_and_parts(tmp_path: Path, weights: Weights) -> None:
    for keys, word in (
        ({"general__type": "adapter"}, "is no model but 'adapter'"),
        ({"adapter__type": "lora"}, "is no model"),
        ({"split__count": 3}, "one of 3 parts"),
    ):
        with pytest.raises(UserError, match=word):
            gguf_config(with_keys(tmp_path, weights, **keys), SUPPORTED)


def test_every_key_of_the_package_is_decided() -> None:
    """Keys that the gguf package knows for these rooms are accepted or refused without a crash."""
    keys = {
        value.replace("{arch}", "llama").replace("{id}", "0").replace("{name}", "x")
        for room in vars(gguf.Keys).values()
        if isinstance(room, type)
        for value in vars(room).values()
        if isinstance(value, str) and "." in value and not value.startswith(("emsjax", "gguf."))
    }
    refused = set()
    for key in keys:
        try:
            check_metadata({key: 7}, "llama", "m.gguf")
        except UserError:
            refused.add(key.removeprefix("llama."))
    expected = {"logit_scale", "residual_scale", "embedding_scale", "attention.clamp_kqv"}
    expected |= {"attention.scale", "attention.sliding_window", "rope.dimension_sections"}
    expected |= {"attn_logit_softcapping", "final_logit_softcapping", "use_parallel_residual"}
    assert expected <= refused
    assert not {"block_count", "rope.freq_base", "vocab_size", "general.name"} & refused


def test_all_tokens_that_end_a_text(tmp_path: Path, weights: Weights) -> None:
    keys = {"tokenizer__ggml__eot_token_id": 5, "tokenizer__ggml__eom_token_id": 7}
    file = with_keys(tmp_path, weights, **keys, tokenizer__ggml__fim_sep_token_id=9)
    assert find_model(file.path).eos_token_ids == (2, 5, 7, 9)


def test_a_generation_config_beside_the_only_file(tmp_path: Path, weights: Weights) -> None:
    with_keys(tmp_path, weights, general__sampling__top_k=30, general__sampling__top_p=0.75)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 8], "top_k": 4}')

    def read(path: Path) -> tuple[Any, ...]:
        opened = find_model(path)
        found = opened.generation_config
        return opened.eos_token_ids, found["top_k"], found["top_p"]

    convert_model(find_model(tmp_path), tmp_path / "converted")
    assert read(tmp_path) == read(tmp_path / "converted") == ((7, 8), 4, 0.75)
    assert read(tmp_path / "m.gguf") == ((2,), 30, 0.75)


def test_a_config_without_weights_beside_a_file(tmp_path: Path, weights: Weights) -> None:
    with_keys(tmp_path, weights)
    write_config(tmp_path)
    with pytest.raises(UserError, match=r"name the file itself, such as .*m\.gguf"):
        find_model(tmp_path)


def test_recommended_sampling_survives_a_conversion(tmp_path: Path, weights: Weights) -> None:
    keys = {"general__sampling__top_k": 30, "general__sampling__top_p": 0.75}
    opened = find_model(with_keys(tmp_path, weights, **keys).path)
    convert_model(opened, tmp_path / "converted")
    for each in (opened, find_model(tmp_path / "converted")):
        found = each.generation_config
        assert (found["top_k"], found["top_p"]) == (30, 0.75)


@pytest.mark.parametrize("key", ["attention.head_count_kv", "feed_forward_length"])
@pytest.mark.parametrize(("values", "fits"), [([2, 2, 2], True), ([2, 1, 2], False), ([], False)])
def test_a_list_for_the_layers(
    tmp_path: Path, weights: Weights, key: str, values: list[int], fits: bool
) -> None:
    file = GgufFile(write_gguf(tmp_path / "m.gguf", weights))
    known = dict(file.metadata) | {f"llama.{key}": values}
    file.__dict__["metadata"] = known
    if fits:
        assert file.whole("{arch}." + key) == 2
    else:
        with pytest.raises(UserError, match="the same for all layers"):
            gguf_config(file, SUPPORTED)


def test_a_file_without_an_embedding(tmp_path: Path, weights: Weights) -> None:
    del weights["model.embed_tokens.weight"]
    with pytest.raises(UserError, match="lacks the token embedding"):
        gguf_config(GgufFile(write_gguf(tmp_path / "m.gguf", weights)), SUPPORTED)
