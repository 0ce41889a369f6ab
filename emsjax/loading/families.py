"""Finds the family of a Hugging Face configuration, and converts the configuration."""

from collections.abc import Mapping
from typing import Any

from emsjax.errors import UserError
from emsjax.loading.hf.keys import ReadKeys, check_code, check_read
from emsjax.loading.hf.numbers import check_numbers, check_together
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


def model_config(hf_config: Mapping[str, Any], origin: str = "the configuration") -> DecoderConfig:
    """Returns the `DecoderConfig` for a Hugging Face configuration.

    Args:
      hf_config: the configuration, with every default filled in.
      origin: name of the configuration in messages.

    Raises:
      UserError: the configuration is damaged, uses a feature that the family does not support, or
        has a key that could change the text and that nothing reads.
    """
    check_code(hf_config, origin)
    check_numbers(hf_config, origin)
    check_together(hf_config, origin)
    its_family, keys = family(hf_config), ReadKeys(hf_config)
    try:
        config = its_family.config(keys)
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise UserError(
            f"{origin} is damaged ({type(error).__name__}: {error}); fix it or download it again."
        ) from error
    if its_family.harmless is not None:
        check_read(hf_config, keys.read, its_family.harmless, its_family.implied, origin)
    return config
