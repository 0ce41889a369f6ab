"""Llama 1, 2 and 3.x, the base from which Mistral, Qwen2 and Qwen3 are defined."""

from collections.abc import Collection, Mapping
from typing import Any

from emsjax.errors import UserError
from emsjax.models.config import Activation, DecoderConfig
from emsjax.models.family import Family, WeightMap, affine, rule
from emsjax.models.rope import FULL, SLIDING, full_attention, rope_from_config

ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
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


# The norms of a layer by where they are, and the checkpoint's names for them.
_NORMS: Mapping[str, Mapping[str, str]] = {
    "before": {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"},
    "after": {
        "attention_out_norm": "post_attention_layernorm",
        "mlp_out_norm": "post_feedforward_layernorm",
    },
    "around": {
        "attention_norm": "input_layernorm",
        "attention_out_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "mlp_out_norm": "post_feedforward_layernorm",
    },
}


def llama_config(
    hf: Mapping[str, Any],
    *,
    eps: str = "rms_norm_eps",
    rope: Mapping[str, Any] | None = None,
    rope_allows: Collection[str] = (),
    theta: float = 10000.0,
) -> DecoderConfig:
    """Converts a Hugging Face `LlamaConfig`, or what another family shares with it.

    Args:
      hf: the configuration.
      eps: its key for the epsilon of the norms.
      rope: the rotary settings; None for those of `hf`.
      rope_allows: see `rope_from_config`.
      theta: base of the rotary embedding unless it is configured.
    """
    head_dim = hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"]
    positions = hf["max_position_embeddings"]
    turned = full_attention(hf)
    if rope is not None:
        turned = {"rope_parameters": rope, "max_position_embeddings": positions}
    return DecoderConfig(
        vocab_size=hf["vocab_size"],
        hidden_size=hf["hidden_size"],
        intermediate_size=hf["intermediate_size"],
        num_layers=hf["num_hidden_layers"],
        num_heads=hf["num_attention_heads"],
        num_kv_heads=hf.get("num_key_value_heads") or hf["num_attention_heads"],
        head_dim=head_dim,
        max_positions=positions,
        norm="rms",
        norm_eps=hf[eps],
        activation=activation(hf.get("hidden_act") or "silu"),
        gated=True,
        qkv_bias=hf.get("attention_bias", False),
        out_bias=hf.get("attention_bias", False),
        mlp_bias=hf.get("mlp_bias", False),
        rope=rope_from_config(turned, head_dim, rope_allows, theta),
        tied=hf.get("tie_word_embeddings", False),
    )


def llama_weights(config: DecoderConfig) -> WeightMap:
    """Returns the weight map of Llama and of the families that share its layout."""
    layer = "layers.{}"
    attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
    qkv = [f"{attention}.{name}_proj" for name in "qkv"]
    inner = [f"{mlp}.{name}_proj" for name in (("gate", "up") if config.gated else ("up",))]
    centred = config.norm == "layer" and config.norm_bias
    rules = {
        "embedder.tokens": rule("embed_tokens.weight"),
        **affine("final_norm", "norm", bias=centred, weight="scale"),
        **affine("blocks.attention.qkv", *qkv, bias=config.qkv_bias),
        **affine("blocks.attention.out", f"{attention}.o_proj", bias=config.out_bias),
        **affine("blocks.mlp.up", *inner, bias=config.mlp_bias),
        **affine("blocks.mlp.down", f"{mlp}.down_proj", bias=config.mlp_bias),
    }
    for ours, theirs in _NORMS[config.norm_place].items():
        if not (config.one_norm and ours == "mlp_norm"):
            rules |= affine(f"blocks.{ours}", f"{layer}.{theirs}", bias=centred, weight="scale")
    if config.qk_norm:
        rules["blocks.attention.q_norm.scale"] = rule(f"{attention}.q_norm.weight")
        rules["blocks.attention.k_norm.scale"] = rule(f"{attention}.k_norm.weight")
    ignore = (r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)
    shared = ("embed_tokens.weight", "lm_head.weight")
    if not config.tied:
        rules["head.kernel"] = rule("lm_head.weight")
    return WeightMap(rules, ignore, ("model.",), shared)


def layer_windows(
    hf: Mapping[str, Any], used: bool = True, full_every: int | None = None
) -> tuple[int, ...]:
    """Returns each layer's sliding window, 0 for none; empty if no layer has one.

    Args:
      hf: a Hugging Face configuration.
      used: whether the configuration uses its `sliding_window`.
      full_every: see `layer_kinds`.

    Raises:
      UserError: a layer is of an unknown type, lacks its window, or there are not as many types as
        layers.
    """
    kinds, window = layer_kinds(hf, used, full_every), hf.get("sliding_window") if used else None
    if SLIDING in kinds and not window:
        raise UserError(
            "layer_types has sliding_attention, but there is no sliding_window in use; set both, "
            "or use another model"
        )
    windows = tuple((window or 0) if kind == SLIDING else 0 for kind in kinds)
    return windows if any(windows) else ()


def same_windows(hf: Mapping[str, Any]) -> tuple[int, ...]:
    """Returns each layer's sliding window, for a type that has it in all layers or in none.

    Raises:
      UserError: `layer_types`, which `transformers` does not read for the type, says otherwise.
    """
    if FULL in (hf.get("layer_types") or ()) and hf.get("sliding_window"):
        raise UserError(
            "layer_types has full_attention, but a model of this type has its sliding window in "
            "all layers; remove layer_types, or use another model"
        )
    return layer_windows(hf)


def layer_kinds(
    hf: Mapping[str, Any], used: bool = True, full_every: int | None = None
) -> tuple[str, ...]:
    """Returns the type of each layer, sliding_attention or full_attention.

    Args:
      hf: a Hugging Face configuration.
      used: whether the configuration uses its `sliding_window`.
      full_every: without `layer_types`, one layer of so many, the last, has no window; None if all
        layers have one, or none.

    Raises:
      UserError: a layer is of an unknown type, or there are not as many types as layers.
    """
    layers, windowed = hf["num_hidden_layers"], bool(hf.get("sliding_window") and used)
    every = (layers + 1 if windowed else 1) if full_every is None else full_every
    kinds = hf.get("layer_types") or [
        FULL if n % every == 0 else SLIDING for n in range(1, layers + 1)
    ]
    unknown = set(map(str, kinds)) - {SLIDING, FULL}
    if unknown or len(kinds) != layers:
        said = f"the types {', '.join(sorted(unknown))}" if unknown else f"{len(kinds)} types"
        raise UserError(
            f"layer_types has {said} for {layers} layers; give each layer sliding_attention or "
            "full_attention, or use another model"
        )
    return tuple(kinds)


LLAMA = Family("llama", llama_config, llama_weights, harmless=frozenset())
