"""Gemma 2: Gemma with norms around each sublayer, soft caps, and a window in every other layer."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from emsjax.models.config import DecoderConfig
from emsjax.models.family import Family
from emsjax.models.gemma import gemma_config
from emsjax.models.llama import activation, layer_windows, llama_weights


def gemma2_config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Converts a Hugging Face `Gemma2Config`, or what Gemma 3 shares with it."""
    return replace(
        gemma_config(hf),
        activation=activation(hf["hidden_activation"]),
        norm_place="around",
        attention_scale=hf["query_pre_attn_scalar"] ** -0.5,
        attention_soft_cap=hf["attn_logit_softcapping"],
        logit_soft_cap=hf["final_logit_softcapping"],
        windows=layer_windows(hf, full_every=2),
    )


# `transformers` reads `hidden_activation` and `sliding_window` only.
_HARMLESS = frozenset({"cache_implementation", "hidden_act", "sliding_window_size"})
GEMMA2 = Family("gemma2", gemma2_config, llama_weights, _HARMLESS)
