"""GPT-NeoX and Pythia: parallel sublayers, heads turned in part, projections joined by head."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from emsjax.models.config import DecoderConfig
from emsjax.models.family import Family, WeightMap, affine, rule
from emsjax.models.llama import activation
from emsjax.models.rope import rope_from_config


def gpt_neox_config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Converts a Hugging Face `GPTNeoXConfig`."""
    heads, bias = hf["num_attention_heads"], hf["attention_bias"]
    head_dim = hf["hidden_size"] // heads
    positions = hf["max_position_embeddings"]
    settings = {
        "partial_rotary_factor": hf.get("rotary_pct") or 0.25,
        "rope_theta": hf.get("rotary_emb_base") or 10000.0,
        **(hf["rope_parameters"] or {}),
    }
    rope = {"rope_parameters": settings, "max_position_embeddings": positions}
    return DecoderConfig(
        vocab_size=hf["vocab_size"],
        hidden_size=hf["hidden_size"],
        intermediate_size=hf["intermediate_size"],
        num_layers=hf["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        max_positions=positions,
        norm="layer",
        norm_eps=hf["layer_norm_eps"],
        activation=activation(hf["hidden_act"]),
        parallel=hf["use_parallel_residual"],
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=True,
        rope=rope_from_config(rope, head_dim, allowed=("partial_rotary_factor",)),
        tied=hf["tie_word_embeddings"],
    )


def gpt_neox_weights(config: DecoderConfig) -> WeightMap:
    """Returns the weight map of GPT-NeoX, which stores query, key and value head by head."""

    def by_kind(tensors: Sequence[np.ndarray]) -> np.ndarray:
        by_head = tensors[0].reshape(config.num_heads, 3, config.head_dim, *tensors[0].shape[1:])
        return by_head.swapaxes(0, 1).reshape(tensors[0].shape)

    layer, qkv = "layers.{}", "layers.{}.attention.query_key_value"
    rules = {
        "embedder.tokens": rule("embed_in.weight"),
        **affine("final_norm", "final_layer_norm", weight="scale"),
        **affine("blocks.attention_norm", f"{layer}.input_layernorm", weight="scale"),
        **affine("blocks.mlp_norm", f"{layer}.post_attention_layernorm", weight="scale"),
        "blocks.attention.qkv.kernel": rule(f"{qkv}.weight", transform=by_kind),
        **affine("blocks.attention.out", f"{layer}.attention.dense", bias=config.out_bias),
        **affine("blocks.mlp.up", f"{layer}.mlp.dense_h_to_4h"),
        **affine("blocks.mlp.down", f"{layer}.mlp.dense_4h_to_h"),
    }
    if config.qkv_bias:
        rules["blocks.attention.qkv.bias"] = rule(f"{qkv}.bias", transform=by_kind)
    if not config.tied:
        rules["head.kernel"] = rule("embed_out.weight")
    ignore = (r"layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",)
    return WeightMap(rules, ignore, ("gpt_neox.",), ("embed_in.weight", "embed_out.weight"))


GPT_NEOX = Family("gpt_neox", gpt_neox_config, gpt_neox_weights, harmless=frozenset())
