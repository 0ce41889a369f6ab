"""GGUF headers as llama.cpp's converter writes them are accepted, with every key that it adds.

The notes and the special tokens are written by the same code of the `gguf` package that the
converter calls. The other keys are those of its classes for Llama, Mistral, Qwen2 and Qwen3.
"""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tiny_checkpoints import write_gguf

from emsjax.errors import UserError
from emsjax.loading.gguf.config import gguf_config
from emsjax.loading.gguf.file import GgufFile
from emsjax.loading.opened import open_model

Weights = dict[str, np.ndarray]
SUPPORTED = ("llama", "qwen2", "qwen3")
TOKENS = [f"t{number}" for number in range(64)]
SPECIAL = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
GENERATION = {"top_k": 20, "top_p": 0.8, "min_p": 0.05, "temperature": 0.7}
README = """---
license: apache-2.0
license_name: a
license_link: b
base_model: owner/base-7B
datasets: [owner/texts]
language: [en]
tags: [chat]
---
"""


def model_directory(path: Path) -> Path:
    """Makes the files of a Hugging Face model that the converter takes notes and tokens from."""
    path.mkdir()
    tokens = {f"{role}_token": TOKENS[place] for place, role in enumerate(SPECIAL, start=1)}
    added = [{"id": place, "content": text} for place, text in enumerate(TOKENS)]
    flags = {"add_bos_token": True, "add_eos_token": False, "add_sep_token": False}
    templates = [{"name": name, "template": name} for name in ("default", "tool_use")]
    contents: dict[str, dict[str, Any]] = {
        "config.json": {"_name_or_path": "owner/Tiny-1B-Instruct-v0.1"},
        "generation_config.json": GENERATION,
        "tokenizer.json": {"model": {"merges": ["t 1"]}, "added_tokens": added},
        "tokenizer_config.json": {**tokens, **flags, "chat_template": templates},
    }
    for name, content in contents.items():
        (path / name).write_text(json.dumps(content))
    (path / "README.md").write_text(README)
    return path


def convert(writer: gguf.GGUFWriter, directory: Path, arch: str) -> None:
    """Writes what the converter writes besides the sizes that `write_gguf` has written."""
    writer.add_type(gguf.GGUFType.MODEL)
    metadata = gguf.Metadata.load(None, directory, None, 10**9)
    metadata.quantized_by, metadata.size_label = "someone", "1B"
    metadata.set_gguf_meta_model(writer)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe" if arch == "llama" else "qwen2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(TOKENS))
    vocabulary = gguf.SpecialVocab(directory, load_merges=True)
    del vocabulary.special_token_ids["bos"], vocabulary.special_token_ids["eos"]  # written already
    vocabulary._set_special_token("eot", 40)
    vocabulary._set_special_token("eom", 41)
    vocabulary.add_to_gguf(writer, quiet=True)
    # Kinds that the package names but has no function for.
    fim = [f"fim_{part}" for part in ("pre", "suf", "mid", "pad", "rep", "sep")]
    for kind in ("prefix", "suffix", "middle", "cls", *fim):
        writer.add_uint32(f"tokenizer.ggml.{kind}_token_id", 42)
    writer.add_add_space_prefix(False)
    writer.add_vocab_size(len(TOKENS))
    writer.add_rope_dimension_count(16)
    writer.add_key_length(16)
    writer.add_value_length(16)
    writer.add_layer_norm_eps(1e-6)
    writer.add_causal_attention(True)
    writer.add_pooling_type(gguf.PoolingType.NONE)
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(32)
    writer.add_rope_scaling_yarn_attn_factor(1.0)
    writer.add_rope_scaling_yarn_beta_fast(32.0)
    writer.add_rope_scaling_yarn_beta_slow(1.0)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for name, value in (("file", "a"), ("dataset", "b")):
        writer.add_string(f"quantize.imatrix.{name}", value)
    writer.add_int32("quantize.imatrix.entries_count", 7)
    writer.add_uint16("split.no", 0)
    writer.add_uint16("split.count", 0)


@pytest.mark.parametrize("arch", SUPPORTED)
def test_a_converted_model(tmp_path: Path, weights: Weights, arch: str) -> None:
    directory = model_directory(tmp_path / "hf")
    if arch == "qwen3":
        weights |= {
            f"model.layers.{layer}.self_attn.{part}_norm.weight": np.ones(16, np.float32)
            for layer in range(3)
            for part in "qk"
        }
    file = write_gguf(
        tmp_path / "m.gguf", weights, arch, extra=lambda writer: convert(writer, directory, arch)
    )
    written = GgufFile(file).metadata.keys()
    # The notes and tokens were found, so that the test shows something.
    assert {"general.license", "general.base_model.0.repo_url", "general.tags"} <= set(written)
    assert {"tokenizer.ggml.mask_token_id", "tokenizer.ggml.add_sep_token"} <= set(written)
    assert {"general.sampling.temp", "tokenizer.chat_template.tool_use"} <= set(written)
    opened = open_model(file, SUPPORTED)
    assert opened.hf_config["rope_parameters"]["rope_type"] == "yarn"
    assert opened.eos_token_ids == (2, 40, 41, 42)
    found = {key: opened.generation_config[key] for key in ("top_k", "top_p", "min_p")}
    assert found == pytest.approx({key: GENERATION[key] for key in found})


def test_suppressed_tokens_are_honoured(tmp_path: Path, weights: Weights) -> None:
    def extra(writer: gguf.GGUFWriter) -> None:
        writer.add_array("tokenizer.ggml.suppress_tokens", [5, 6])
        writer.add_string("llama.hidden_activation", "silu")

    opened = open_model(write_gguf(tmp_path / "m.gguf", weights, extra=extra), SUPPORTED)
    assert opened.generation_config["suppress_tokens"] == [5, 6]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.hidden_activation", "gelu"),
        ("tokenizer.ggml.normalizer.lowercase", True),
        ("llama.rope.scaling.alpha", 2.0),
    ],
)
def test_newer_keys_are_refused_by_name(
    tmp_path: Path, weights: Weights, key: str, value: Any
) -> None:
    def extra(writer: gguf.GGUFWriter) -> None:
        add = {str: writer.add_string, bool: writer.add_bool, float: writer.add_float32}
        add[type(value)](key, value)

    with pytest.raises(UserError, match=key):
        gguf_config(GgufFile(write_gguf(tmp_path / "m.gguf", weights, extra=extra)), SUPPORTED)
