"""Helium: Llama whose neighbouring lanes turn."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from emsjax.models.config import DecoderConfig
from emsjax.models.family import Family
from emsjax.models.llama import llama_config, llama_weights


def helium_config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Converts a Hugging Face `HeliumConfig`."""
    return replace(llama_config(hf, theta=1e5), out_bias=False, rope_interleaved=True)


HELIUM = Family("helium", helium_config, llama_weights, harmless=frozenset())
