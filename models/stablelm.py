"""StableLM: layer norms, a quarter of a head turns, in some sizes a norm for each head."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from emsjax.models.config import DecoderConfig
from emsjax.models.family import Family, WeightMap, rule
from emsjax.models.llama import llama_config, llama_weights
from emsjax.models.rope import rope_settings


def stablelm_config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Converts a Hugging Face `StableLmConfig`."""
    rope, parallel = rope_settings(hf, partial_rotary_factor=0.25), hf["use_parallel_residual"]
    return replace(
        llama_config(hf, eps="layer_norm_eps", rope=rope, rope_allows=("partial_rotary_factor",)),
        norm="layer",
        parallel=parallel,
        one_norm=parallel,
        qkv_bias=hf["use_qkv_bias"],
        qk_norm="each" if hf["qk_layernorm"] else None,
    )


def stablelm_weights(config: DecoderConfig) -> WeightMap:
    """Returns the weight map of StableLM, which stores the norm of each head by itself."""
    layout = llama_weights(config)
    rules = dict(layout.rules)
    if config.qk_norm:
        for name, heads in (("q", config.num_heads), ("k", config.num_kv_heads)):
            norms = f"layers.{{}}.self_attn.{name}_layernorm.norms"
            each = [f"{norms}.{head}.weight" for head in range(heads)]
            rules[f"blocks.attention.{name}_norm.scale"] = rule(*each, transform=np.stack)
    return replace(layout, rules=rules)


STABLELM = Family("stablelm", stablelm_config, stablelm_weights, harmless=frozenset())
