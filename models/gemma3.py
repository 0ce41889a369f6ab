"""Gemma 3 text: norms on heads instead of soft caps, and rotary tables by kind of layer."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from emsjax.errors import UserError
from emsjax.models.config import DecoderConfig
from emsjax.models.family import Family, WeightMap, of_text_part
from emsjax.models.gemma2 import gemma2_config
from emsjax.models.llama import layer_kinds, layer_windows, llama_weights
from emsjax.models.rope import FULL, ropes_by_kind


def gemma3_config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Converts a Hugging Face `Gemma3TextConfig`."""
    if hf["attn_logit_softcapping"]:
        raise UserError(
            f"a Gemma 3 model with attn_logit_softcapping={hf['attn_logit_softcapping']} is not "
            "supported, because `transformers` ignores it; remove it or use another model"
        )
    full_every = hf.get("sliding_window_pattern") or 6
    local = hf.get("rope_local_base_freq") or 1e4
    config, kinds = gemma2_config(hf), layer_kinds(hf, full_every=full_every)
    ropes = ropes_by_kind(hf, config.head_dim, theta=1e6, local_theta=local)
    return replace(
        config,
        qk_norm="head",
        windows=layer_windows(hf, full_every=full_every),
        rope=ropes[FULL],
        layer_ropes=tuple(ropes[kind] for kind in kinds),
    )


def gemma3_weights(config: DecoderConfig) -> WeightMap:
    """Returns the weight map of Gemma 3, also for checkpoints that hold more than the text part."""
    return of_text_part(llama_weights(config))


# `transformers` turns the pattern into `layer_types`, and reads `hidden_activation` only.
_HARMLESS = frozenset({"_sliding_window_pattern", "cache_implementation", "hidden_act"})
GEMMA3 = Family("gemma3_text", gemma3_config, gemma3_weights, _HARMLESS)
