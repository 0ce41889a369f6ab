"""Mistral: Llama with a sliding window."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from emsjax.errors import UserError
from emsjax.models.config import DecoderConfig
from emsjax.models.family import Family, WeightMap, of_text_part
from emsjax.models.llama import layer_windows, llama_config, llama_weights


def mistral_config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Converts a Hugging Face `MistralConfig`."""
    if "full_attention" in (hf.get("layer_types") or ()) and hf.get("sliding_window"):
        raise UserError(
            "a Mistral model with a sliding window in only some layers is not supported, because "
            "its type has the window in all; use another one"
        )
    return replace(llama_config(hf), windows=layer_windows(hf))


def mistral_weights(config: DecoderConfig) -> WeightMap:
    """Returns the weight map of Mistral, also for checkpoints that hold more than the text part."""
    return of_text_part(llama_weights(config))


MISTRAL = Family("mistral", mistral_config, mistral_weights, harmless=frozenset())
