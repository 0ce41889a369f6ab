"""Ministral 3: Mistral with queries that grow with their position."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from emsjax.models.config import DecoderConfig
from emsjax.models.family import Family
from emsjax.models.llama import llama_config, same_windows
from emsjax.models.mistral import mistral_weights

_DEFAULT_ROPE: Mapping[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 1000000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
_ROPE = ("mscale", "mscale_all_dim", "llama_4_scaling_beta", "max_position_embeddings")


def ministral3_config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Converts a Hugging Face `Ministral3Config`."""
    rope = hf["rope_parameters"] or _DEFAULT_ROPE
    growth = float(rope["llama_4_scaling_beta"]), float(rope["original_max_position_embeddings"])
    config = llama_config(hf, rope=rope, rope_allows=_ROPE)
    return replace(config, windows=same_windows(hf), query_growth=growth)


MINISTRAL3 = Family("ministral3", ministral3_config, mistral_weights, harmless=frozenset())
