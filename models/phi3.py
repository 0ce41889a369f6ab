"""Phi-3, 3.5 and 4: Llama with joined projections, heads turned in part, and LongRoPE.

LongRoPE has other frequencies for texts longer than the trained length, also for tokens that are in
the cache already. Texts are therefore limited to the trained length, where the result is exact.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from emsjax.models.config import DecoderConfig
from emsjax.models.family import Family, WeightMap, affine
from emsjax.models.llama import llama_config, llama_weights, same_windows
from emsjax.models.rope import rope_settings


def phi3_config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Converts a Hugging Face `Phi3Config`."""
    rope = rope_settings(hf, partial_rotary_factor=hf.get("partial_rotary_factor") or 1.0)
    config = llama_config(hf, rope=rope, rope_allows=("partial_rotary_factor", "longrope"))
    trained = hf["original_max_position_embeddings"]
    if (hf.get("rope_parameters") or {}).get("rope_type") == "longrope":
        config = replace(config, max_positions=min(config.max_positions, trained))
    return replace(config, windows=same_windows(hf))


def phi3_weights(config: DecoderConfig) -> WeightMap:
    """Returns the weight map of Phi-3, whose joined projections already have our order of rows."""
    layout, layer = llama_weights(config), "layers.{}"
    rules = {
        **layout.rules,
        **affine("blocks.attention.qkv", f"{layer}.self_attn.qkv_proj", bias=False),
        **affine("blocks.mlp.up", f"{layer}.mlp.gate_up_proj", bias=False),
    }
    return replace(layout, rules=rules)


PHI3 = Family(
    "phi3",
    phi3_config,
    phi3_weights,
    # `transformers` copies the factor to `rope_parameters`, which is read.
    harmless=frozenset({"resid_pdrop", "embd_pdrop", "partial_rotary_factor"}),
    implied={"full_attn_mod": 1, "interpolate_factor": 1},
)
