"""Reads Hugging Face configurations and fills in every default."""

import copy
import json
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from emsjax.errors import UserError, foreign, reason
from emsjax.loading.hf.defaults import type_of_transformers
from emsjax.loading.hf.keys import REPLACED, check_code, shown
from emsjax.loading.hf.multimodal import text_part
from emsjax.loading.hf.numbers import check_eos, check_ranges
from emsjax.loading.hf.unadvised import without_advice


def read_json(file: Path, remedy: str = "download it again") -> dict[str, Any]:
    """Reads a JSON object from a file.

    Args:
      file: the file.
      remedy: what the error message tells the user to do if the file is damaged.

    Raises:
      UserError: the file does not exist, cannot be read or is damaged.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); {remedy}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not valid JSON ({reason(error)}); {remedy}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is not a JSON object; {remedy}.")
    return content


def complete_config(
    given: Mapping[str, Any], supported: Collection[str], origin: str
) -> dict[str, Any]:
    """Returns `given` with the defaults that `transformers` has for its `model_type`.

    Args:
      given: a Hugging Face configuration.
      supported: model types to accept.
      origin: name of the configuration in error messages.

    Raises:
      UserError: the model type is not supported, or `transformers` rejects the configuration.
    """
    given = text_part(given, origin)
    check_given(given, supported, origin)
    with without_advice():
        from transformers import CONFIG_MAPPING

    with foreign(f"{origin} is rejected by transformers", "fix it or download it again"):
        known = {"model_type": type_of_transformers(given["model_type"])}
        config_class = CONFIG_MAPPING[known["model_type"]]
        completed = config_class.from_dict(copy.deepcopy(dict(given) | known)).to_dict()
    # transformers drops the keys of generation and some that it does not know.
    replaced = REPLACED | config_class.attribute_map.keys()
    lost = {key: given[key] for key in given if key not in completed and key not in replaced}
    return completed | lost | {"model_type": given["model_type"]}


def check_given(given: Mapping[str, Any], supported: Collection[str], origin: str) -> None:
    """Checks what can be checked before the defaults are filled in.

    Args:
      given: a Hugging Face configuration.
      supported: model types to accept.
      origin: name of the configuration in error messages.

    Raises:
      UserError: the model type is not supported, the configuration comes with code or quantised
        weights, or a size is out of range.
    """
    check_supported(given.get("model_type"), supported, origin)
    check_code(given, origin)
    check_ranges(given, origin)  # before transformers, which makes a list of the layers


def check_supported(model_type: object, supported: Collection[str], origin: str) -> None:
    """Checks that a model type can be loaded.

    Args:
      model_type: the configuration's `model_type`.
      supported: model types to accept.
      origin: name of the configuration in error messages.

    Raises:
      UserError: the model type is not supported.
    """
    if not isinstance(model_type, str) or model_type not in supported:
        closest = get_close_matches(str(model_type)[:40], supported, n=1, cutoff=0.5)
        named = f"; the closest is {closest[0]}" if closest else ""
        raise UserError(
            f"{origin} has model type {shown(model_type)}, which is not supported; "
            f"choose a model of one of these families: {', '.join(sorted(supported))}{named}."
        )


def eos_token_ids(*configs: Mapping[str, Any]) -> tuple[int, ...]:
    """Returns the end-of-text ids of the first configuration that has any, or an empty tuple.

    Raises:
      UserError: they are no token ids.
    """
    for config in configs:
        check_eos(config, "the configuration")
        found = config.get("eos_token_id")
        if found is not None:
            return tuple(found) if isinstance(found, list | tuple) else (int(found),)
    return ()
