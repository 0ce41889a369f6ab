"""Finds the family of a Hugging Face configuration, and converts the configuration."""

from collections.abc import Mapping
from typing import Any

from emsjax.models.config import DecoderConfig
from emsjax.models.family import Family


def supported() -> frozenset[str]:
    """Returns the Hugging Face model types that can be loaded."""
    # Imported here so that tests and documentation pages can replace the registry.
    from emsjax.models.registry import FAMILIES

    return frozenset(FAMILIES)


def family(hf_config: Mapping[str, Any]) -> Family:
    """Returns the family of a Hugging Face configuration."""
    from emsjax.models.registry import FAMILIES

    return FAMILIES[hf_config["model_type"]]


def model_config(hf_config: Mapping[str, Any]) -> DecoderConfig:
    """Returns the `DecoderConfig` for a Hugging Face configuration.

    Raises:
      UserError: the configuration uses a feature that the family does not support.
    """
    return family(hf_config).config(hf_config)
