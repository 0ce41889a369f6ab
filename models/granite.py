"""Granite 3: Llama with four multipliers."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from emsjax.models.config import DecoderConfig
from emsjax.models.family import Family
from emsjax.models.llama import llama_config, llama_weights


def granite_config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Converts a Hugging Face `GraniteConfig`."""
    return replace(
        llama_config(hf),
        embedding_scale=float(hf["embedding_multiplier"]),
        attention_scale=float(hf["attention_multiplier"]),
        residual_scale=float(hf["residual_multiplier"]),
        logit_scale=1 / hf["logits_scaling"],
    )


GRANITE = Family("granite", granite_config, llama_weights, harmless=frozenset())
