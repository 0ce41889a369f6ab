"""Phi-1, 1.5 and 2: parallel sublayers after one norm, biases everywhere, also on the logits."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from emsjax.models.config import DecoderConfig
from emsjax.models.family import Family, WeightMap, affine, rule
from emsjax.models.llama import llama_config, llama_weights
from emsjax.models.rope import rope_settings


def phi_config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Converts a Hugging Face `PhiConfig`."""
    rope = rope_settings(hf, partial_rotary_factor=0.5)
    return replace(
        llama_config(hf, eps="layer_norm_eps", rope=rope, rope_allows=("partial_rotary_factor",)),
        norm="layer",
        parallel=True,
        one_norm=True,
        gated=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        logit_bias=True,
        qk_norm="head" if hf["qk_layernorm"] else None,
    )


def phi_weights(config: DecoderConfig) -> WeightMap:
    """Returns the weight map of Phi."""
    layout, layer = llama_weights(config), "layers.{}"
    rules = {
        **layout.rules,
        **affine("final_norm", "final_layernorm", weight="scale"),
        **affine("blocks.attention.out", f"{layer}.self_attn.dense"),
        **affine("blocks.mlp.up", f"{layer}.mlp.fc1"),
        **affine("blocks.mlp.down", f"{layer}.mlp.fc2"),
        "logit_bias": rule("lm_head.bias"),
    }
    if config.qk_norm:
        for name in "qk":
            path, theirs = f"blocks.attention.{name}_norm", f"{layer}.self_attn.{name}_layernorm"
            rules |= affine(path, theirs, weight="scale")
    return replace(layout, rules=rules)


PHI = Family("phi", phi_config, phi_weights, frozenset({"resid_pdrop", "embd_pdrop"}))
