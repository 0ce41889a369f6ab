"""Llama 1, 2 and 3.x, the base from which Mistral, Qwen2 and Qwen3 are defined."""

from collections.abc import Mapping
from typing import Any

from emsjax.errors import UserError
from emsjax.models.config import Activation, DecoderConfig
from emsjax.models.family import Family, WeightMap, affine, rule
from emsjax.models.rope import rope_from_config

ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


def activation(name: str) -> Activation:
    """Returns the `DecoderConfig` name of a Hugging Face activation.

    Raises:
      UserError: the activation is not supported.
    """
    if name not in ACTIVATIONS:
        raise UserError(
            f"activation {name!r} is not supported; use a model with one of "
            f"{', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]


def llama_config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Converts a Hugging Face `LlamaConfig`."""
    head_dim = hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"]
    return DecoderConfig(
        vocab_size=hf["vocab_size"],
        hidden_size=hf["hidden_size"],
        intermediate_size=hf["intermediate_size"],
        num_layers=hf["num_hidden_layers"],
        num_heads=hf["num_attention_heads"],
        num_kv_heads=hf.get("num_key_value_heads") or hf["num_attention_heads"],
        head_dim=head_dim,
        max_positions=hf["max_position_embeddings"],
        norm="rms",
        norm_eps=hf["rms_norm_eps"],
        activation=activation(hf.get("hidden_act") or "silu"),
        gated=True,
        qkv_bias=hf.get("attention_bias", False),
        out_bias=hf.get("attention_bias", False),
        mlp_bias=hf.get("mlp_bias", False),
        rope=rope_from_config(hf, head_dim),
        tied=hf.get("tie_word_embeddings", False),
    )


def llama_weights(config: DecoderConfig) -> WeightMap:
    """Returns the weight map of Llama and of the families that share its layout."""
    layer = "layers.{}"
    attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
    qkv = [f"{attention}.{name}_proj" for name in "qkv"]
    rules = {
        "embedder.tokens": rule("embed_tokens.weight"),
        "final_norm.scale": rule("norm.weight"),
        "blocks.attention_norm.scale": rule(f"{layer}.input_layernorm.weight"),
        "blocks.mlp_norm.scale": rule(f"{layer}.post_attention_layernorm.weight"),
        **affine("blocks.attention.qkv", *qkv, bias=config.qkv_bias),
        **affine("blocks.attention.out", f"{attention}.o_proj", bias=config.out_bias),
        **affine("blocks.mlp.up", f"{mlp}.gate_proj", f"{mlp}.up_proj", bias=config.mlp_bias),
        **affine("blocks.mlp.down", f"{mlp}.down_proj", bias=config.mlp_bias),
    }
    if config.qk_norm:
        rules["blocks.attention.q_norm.scale"] = rule(f"{attention}.q_norm.weight")
        rules["blocks.attention.k_norm.scale"] = rule(f"{attention}.k_norm.weight")
    ignore = (r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)
    shared = ("embed_tokens.weight", "lm_head.weight")
    if not config.tied:
        rules["head.kernel"] = rule("lm_head.weight")
    return WeightMap(rules, ignore, ("model.",), shared)


def layer_windows(hf: Mapping[str, Any], used: bool = True) -> tuple[int, ...]:
    """Returns each layer's sliding window, 0 for none; empty if no layer has one.

    Args:
      hf: a Hugging Face configuration.
      used: whether the configuration uses its `sliding_window`.

    Raises:
      UserError: a layer is of an unknown type, lacks its window, or there are not as many types as
        layers.
    """
    window, layers, kinds = hf.get("sliding_window"), hf["num_hidden_layers"], hf.get("layer_types")
    window = window if used else None
    kinds = kinds or ["sliding_attention" if window else "full_attention"] * layers
    unknown = set(map(str, kinds)) - {"sliding_attention", "full_attention"}
    if unknown or len(kinds) != layers:
        said = f"the types {', '.join(sorted(unknown))}" if unknown else f"{len(kinds)} types"
        raise UserError(
            f"layer_types has {said} for {layers} layers; give each layer sliding_attention or "
            "full_attention, or use another model"
        )
    if "sliding_attention" in kinds and not window:
        raise UserError(
            "layer_types has sliding_attention, but there is no sliding_window in use; set both, "
            "or use another model"
        )
    windows = tuple((window or 0) if kind == "sliding_attention" else 0 for kind in kinds)
    return windows if any(windows) else ()


LLAMA = Family("llama", llama_config, llama_weights, harmless=frozenset())
