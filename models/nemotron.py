"""Nemotron and Minitron: layer norms times 1 + weight, squared ReLU, half of a head turns."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from emsjax.models.config import DecoderConfig
from emsjax.models.family import Family
from emsjax.models.llama import llama_config, llama_weights
from emsjax.models.rope import rope_settings


def nemotron_config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Converts a Hugging Face `NemotronConfig`."""
    rope = rope_settings(hf, partial_rotary_factor=0.5)
    return replace(
        llama_config(hf, eps="norm_eps", rope=rope, rope_allows=("partial_rotary_factor",)),
        norm="layer",
        norm_offset=True,
        gated=False,
    )


# Older names of `partial_rotary_factor`.
_IMPLIED = dict.fromkeys(("rope_percent", "rope_percentage"), 0.5)
NEMOTRON = Family("nemotron", nemotron_config, llama_weights, frozenset(), _IMPLIED)
