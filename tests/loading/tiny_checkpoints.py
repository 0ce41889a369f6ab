"""Writes tiny checkpoints in every format."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
# Shapes of one layer's tensors.
LAYER: Mapping[str, tuple[int, ...]] = {
    "self_attn.q_proj": (64, 64),
    "self_attn.k_proj": (32, 64),
    "self_attn.v_proj": (32, 64),
    "self_attn.o_proj": (64, 64),
    "mlp.gate_proj": (96, 64),
    "mlp.up_proj": (96, 64),
    "mlp.down_proj": (64, 96),
    "input_layernorm": (64,),
    "post_attention_layernorm": (64,),
}


def llama_weights() -> dict[str, np.ndarray]:
    """Returns the tensors of a tiny Llama in float32, under their Hugging Face names."""
    rng = np.random.default_rng(0)
    shapes = {"model.embed_tokens": (64, 64), "model.norm": (64,), "lm_head": (64, 64)}
    for layer in range(3):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in LAYER.items()}
    return {
        f"{name}.weight": rng.normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def write_config(directory: Path, **changes: Any) -> None:
    (directory / "config.json").write_text(json.dumps(CONFIG | changes))


def write_shards(
    directory: Path,
    weights: Mapping[str, Any],
    save: Callable[[dict[str, Any], Path], Any],
    single: str = "model.safetensors",
) -> list[Path]:
    """Writes two shards and their index; returns the shards."""
    names = list(weights)
    stem, suffix = single.split(".")
    where = {name: f"{stem}-0000{1 + i % 2}-of-00002.{suffix}" for i, name in enumerate(names)}
    for file in set(where.values()):
        save({n: weights[n] for n in names if where[n] == file}, directory / file)
    (directory / f"{single}.index.json").write_text(json.dumps({"weight_map": where}))
    return sorted(directory / file for file in set(where.values()))


def to_bfloat16(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value.astype(ml_dtypes.bfloat16) for name, value in weights.items()}


def gguf_name(name: str) -> str:
    stem, kind = name.rsplit(".", 1)
    if stem in GGUF_NAMES:
        return f"{GGUF_NAMES[stem]}.{kind}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{GGUF_NAMES[part]}.{kind}"


def permuted(name: str, weight: np.ndarray, heads: int, kv_heads: int) -> np.ndarray:
    """Returns the rows in the order of llama.cpp's converter."""
    n = {"q_proj": heads, "k_proj": kv_heads}.get(name.split(".")[-2], 0)
    if not n:
        return weight
    halves = weight.reshape(n, 2, weight.shape[0] // n // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def write_gguf(
    path: Path,
    weights: Mapping[str, np.ndarray],
    arch: str = "llama",
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    extra: Callable[[gguf.GGUFWriter], None] = lambda _: None,
) -> Path:
    """Writes a GGUF file of the tiny model, with norms in float32."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(3)
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(5e5)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    extra(writer)
    for name, weight in weights.items():
        rows = permuted(name, weight, 4, 2) if arch == "llama" else weight
        if rows.ndim > 1 and kind != gguf.GGMLQuantizationType.F32:
            writer.add_tensor(gguf_name(name), gguf.quantize(rows, kind), raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name(name), rows)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
