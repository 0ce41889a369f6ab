"""Mistral: Llama with a sliding window."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from emsjax.models.config import DecoderConfig
from emsjax.models.family import Family, WeightMap, of_text_part
from emsjax.models.llama import llama_config, llama_weights, same_windows


def mistral_config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Converts a Hugging Face `MistralConfig`."""
    return replace(llama_config(hf), windows=same_windows(hf))


def mistral_weights(config: DecoderConfig) -> WeightMap:
    """Returns the weight map of Mistral, also for checkpoints that hold more than the text part."""
    return of_text_part(llama_weights(config))


MISTRAL = Family("mistral", mistral_config, mistral_weights, harmless=frozenset())
