"""GLM-4 (0414): norms around each sublayer, half of a head turns, gate and up joined."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from emsjax.models.config import DecoderConfig
from emsjax.models.family import Family, WeightMap, affine, rule
from emsjax.models.llama import llama_config, llama_weights
from emsjax.models.rope import rope_settings

_NORMS = {
    "attention_norm": "input_layernorm",
    "attention_out_norm": "post_self_attn_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "mlp_out_norm": "post_mlp_layernorm",
}


def glm4_config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Converts a Hugging Face `Glm4Config`."""
    rope = rope_settings(hf, partial_rotary_factor=0.5)
    return replace(
        llama_config(hf, rope=rope, rope_allows=("partial_rotary_factor",)),
        out_bias=False,
        norm_place="around",
        rope_interleaved=True,
    )


def glm4_weights(config: DecoderConfig) -> WeightMap:
    """Returns the weight map of GLM-4."""
    layout, layer = llama_weights(config), "layers.{}"
    rules = {
        **layout.rules,
        **affine("blocks.mlp.up", f"{layer}.mlp.gate_up_proj", bias=False),
        **{f"blocks.{ours}.scale": rule(f"{layer}.{_NORMS[ours]}.weight") for ours in _NORMS},
    }
    return replace(layout, rules=rules)


GLM4 = Family("glm4", glm4_config, glm4_weights, harmless=frozenset())
