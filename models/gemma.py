"""Gemma 1: Llama with norms that multiply by 1 + weight, and a scaled embedding."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from emsjax.models.config import DecoderConfig
from emsjax.models.family import Family
from emsjax.models.llama import llama_config, llama_weights


def gemma_config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Converts what all Gemma models share."""
    config = llama_config(hf)
    return replace(config, norm_offset=True, embedding_scale=config.hidden_size**0.5)


def gemma1_config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Converts a Hugging Face `GemmaConfig`."""
    config = gemma_config(hf)
    # The first checkpoints say "gelu", but mean its approximation by tanh, as `transformers` knows.
    exact = config.activation == "gelu"
    return replace(config, activation="gelu_tanh" if exact else config.activation)


# `transformers` reads `hidden_act` only.
_HARMLESS = frozenset({"hidden_activation"})
GEMMA = Family("gemma", gemma1_config, llama_weights, _HARMLESS)
