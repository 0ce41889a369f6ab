"""Cohere 1 and 2 (Command R, Aya): parallel sublayers after one norm, neighbouring lanes turn."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from emsjax.models.config import DecoderConfig
from emsjax.models.family import Family, WeightMap, of_text_part
from emsjax.models.llama import layer_kinds, layer_windows, llama_config, llama_weights
from emsjax.models.rope import SLIDING


def cohere_config(hf: Mapping[str, Any], theta: float = 500000.0) -> DecoderConfig:
    """Converts a Hugging Face `CohereConfig`, or what Cohere 2 shares with it."""
    return replace(
        llama_config(hf, eps="layer_norm_eps", theta=theta),
        norm="layer",
        norm_bias=False,
        parallel=True,
        one_norm=True,
        rope_interleaved=True,
        logit_scale=float(hf["logit_scale"]),
        qk_norm="each" if hf.get("use_qk_norm") else None,
    )


def cohere2_config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Converts a Hugging Face `Cohere2Config`: only the layers with a window have positions."""
    config, full_every = cohere_config(hf, theta=10000.0), hf.get("sliding_window_pattern") or 4
    rope = config.rope
    assert rope is not None
    kinds = layer_kinds(hf, full_every=full_every)
    return replace(
        config,
        windows=layer_windows(hf, full_every=full_every),
        layer_ropes=tuple(rope if kind == SLIDING else rope.still for kind in kinds),
    )


def cohere2_weights(config: DecoderConfig) -> WeightMap:
    """Returns the weight map of Cohere 2, also for checkpoints that hold more than text."""
    return of_text_part(llama_weights(config))


COHERE = Family("cohere", cohere_config, llama_weights, harmless=frozenset())
COHERE2 = Family(
    "cohere2",
    cohere2_config,
    cohere2_weights,
    # `layer_switch` is another name of `sliding_window_pattern`.
    harmless=frozenset({"cache_implementation", "layer_switch", "use_parallel_embedding"}),
    implied={
        "order_of_interleaved_layers": "local_attn_first",
        "position_embedding_type": "rope_gptj",
        "rotary_pct": 1.0,
        "use_embedding_sharing": True,
        "use_gated_activation": True,
        "use_parallel_block": True,
    },
)
