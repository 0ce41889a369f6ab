"""Falcon: parallel sublayers, and one projection to queries, keys and values, group by group."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from emsjax.errors import UserError
from emsjax.models.config import DecoderConfig
from emsjax.models.family import Family, WeightMap, affine, rule
from emsjax.models.llama import activation
from emsjax.models.rope import rope_from_config


def falcon_config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Converts a Hugging Face `FalconConfig`."""
    if hf["alibi"]:
        raise UserError(
            "a Falcon model with alibi is not supported, because emsjax knows only rotary and "
            "learned positions; use another one"
        )
    heads, grouped = hf["num_attention_heads"], hf["new_decoder_architecture"]
    one_kv_head, side_by_side = hf["multi_query"], hf["parallel_attn"]
    head_dim, bias, norms = hf["hidden_size"] // heads, hf["bias"], hf["num_ln_in_parallel_attn"]
    parallel = bool(grouped or side_by_side)
    # `transformers` has no norms for these.
    if norms not in (None, 1, 2) or (norms == 2 and not grouped) or (grouped and not side_by_side):
        raise UserError(
            f"a Falcon model with new_decoder_architecture={grouped}, parallel_attn={side_by_side} "
            f"and num_ln_in_parallel_attn={norms} is not supported; use another one"
        )
    kv_heads = hf["num_kv_heads"] or heads
    return DecoderConfig(
        vocab_size=hf["vocab_size"],
        hidden_size=hf["hidden_size"],
        intermediate_size=hf["ffn_hidden_size"] or 4 * hf["hidden_size"],
        num_layers=hf["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=kv_heads if grouped else 1 if one_kv_head else heads,
        head_dim=head_dim,
        max_positions=hf["max_position_embeddings"],
        norm="layer",
        norm_eps=hf["layer_norm_epsilon"],
        activation=activation(hf["activation"]),
        parallel=parallel,
        one_norm=parallel and not (grouped and norms != 1),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=bias,
        rope=rope_from_config(hf, head_dim),
        tied=hf["tie_word_embeddings"],
    )


def falcon_weights(config: DecoderConfig) -> WeightMap:
    """Returns the weight map of Falcon, which stores a group's queries before its key and value."""
    groups, head_dim = config.num_kv_heads, config.head_dim
    queries = config.num_heads // groups

    def by_kind(tensors: Sequence[np.ndarray]) -> np.ndarray:
        tensor = tensors[0]
        by_group = tensor.reshape(groups, queries + 2, head_dim, *tensor.shape[1:])
        parts = np.split(by_group, (queries, queries + 1), axis=1)
        return np.concatenate([part.reshape(-1, *tensor.shape[1:]) for part in parts])

    layer, qkv = "h.{}", "h.{}.self_attention.query_key_value"
    rules = {
        "embedder.tokens": rule("word_embeddings.weight"),
        **affine("final_norm", "ln_f", weight="scale"),
        "blocks.attention.qkv.kernel": rule(f"{qkv}.weight", transform=by_kind),
        **affine("blocks.attention.out", f"{layer}.self_attention.dense", bias=config.out_bias),
        **affine("blocks.mlp.up", f"{layer}.mlp.dense_h_to_4h", bias=config.mlp_bias),
        **affine("blocks.mlp.down", f"{layer}.mlp.dense_4h_to_h", bias=config.mlp_bias),
    }
    if config.qkv_bias:
        rules["blocks.attention.qkv.bias"] = rule(f"{qkv}.bias", transform=by_kind)
    two_in_parallel = config.parallel and not config.one_norm
    first = "ln_attn" if two_in_parallel else "input_layernorm"
    rules |= affine("blocks.attention_norm", f"{layer}.{first}", weight="scale")
    if not config.one_norm:
        second = "ln_mlp" if two_in_parallel else "post_attention_layernorm"
        rules |= affine("blocks.mlp_norm", f"{layer}.{second}", weight="scale")
    if not config.tied:
        rules["head.kernel"] = rule("lm_head.weight")
    shared = ("word_embeddings.weight", "lm_head.weight")
    return WeightMap(rules, prefixes=("transformer.",), shared=shared)


FALCON = Family("falcon", falcon_config, falcon_weights, harmless=frozenset())
