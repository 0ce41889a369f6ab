"""OLMo 2 and 3: Llama with norms after the sublayers, and over all queries and all keys."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from emsjax.models.config import DecoderConfig
from emsjax.models.family import Family
from emsjax.models.llama import layer_kinds, layer_windows, llama_config, llama_weights
from emsjax.models.rope import FULL, ropes_by_kind

_FULL_EVERY = 4


def olmo2_config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Converts a Hugging Face `Olmo2Config`, or what OLMo 3 shares with it."""
    return replace(llama_config(hf), norm_place="after", qk_norm="whole")


def olmo3_config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Converts a Hugging Face `Olmo3Config`: windows, and rotary tables by kind of layer."""
    config = olmo2_config(hf)
    ropes = ropes_by_kind(hf, config.head_dim, theta=5e5, local_theta=5e5)
    return replace(
        config,
        windows=layer_windows(hf, full_every=_FULL_EVERY),
        rope=ropes[FULL],
        layer_ropes=tuple(ropes[kind] for kind in layer_kinds(hf, full_every=_FULL_EVERY)),
    )


OLMO2 = Family("olmo2", olmo2_config, llama_weights, harmless=frozenset())
OLMO3 = Family("olmo3", olmo3_config, llama_weights, harmless=frozenset())
