"""Configurations with the defaults of `transformers`, for callers that cannot wait for its import.

A configuration that says anything beyond the table of defaults is left to `transformers`.
"""

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

from emsjax.loading.hf.defaults import DEFAULTS
from emsjax.loading.hf.generation import GENERATION_KEYS
from emsjax.loading.hf.keys import HARMLESS

# Types with rotary settings of their own, and which of the older keys only `transformers` can read.
_BASE_AND_SCALING = frozenset({"rope_theta", "rope_scaling"})
_OWN_ROPE: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        **dict.fromkeys(("gemma3_text", "olmo3", "ministral3", "gpt_neox"), _BASE_AND_SCALING),
        # Their bases are not 10000 unless given.
        **dict.fromkeys(
            ("smollm3", "cohere", "cohere2", "mixtral", "helium", "gpt_oss"),
            frozenset({"rope_scaling"}),
        ),
        "phi3": frozenset({"rope_scaling", "partial_rotary_factor"}),
    }
)
# Keys outside the table that the families read as they are, with the types of their values.
_AS_GIVEN: Mapping[str, tuple[type, ...]] = MappingProxyType(
    {
        "rope_theta": (int, float),
        "rope_scaling": (dict, type(None)),
        "rope_parameters": (dict, type(None)),
        "sliding_window": (int, type(None)),
    }
)
# The types of values whose default does not show them.
_TYPES: Mapping[str, tuple[type, ...]] = MappingProxyType(
    {
        "attn_logit_softcapping": (float, type(None)),
        "clip_qkv": (float, type(None)),
        "final_logit_softcapping": (float, type(None)),
    }
)


def completed_from_table(
    given: Mapping[str, Any], harmless: Collection[str]
) -> dict[str, Any] | None:
    """Returns a configuration with the defaults of the keys that its family reads.

    Args:
      given: a Hugging Face configuration of a supported model type.
      harmless: keys of the family that change nothing.

    Returns:
      The configuration; None if only `transformers` can tell what it means, because the table does
      not have its type, or the configuration has another key, or a value of an unusual type.
    """
    defaults = DEFAULTS.get(given["model_type"])
    if defaults is None or given.get("use_sliding_window"):
        return None
    if given.get("rope_parameters") and given.get("rope_scaling"):
        return None
    if not _ropes_are_usual(given):
        return None
    ignored = HARMLESS | GENERATION_KEYS | set(harmless)
    known = all(key in ignored or _is_usual(key, given[key], defaults) for key in given)
    return {**defaults, **given} if known else None


def _ropes_are_usual(given: Mapping[str, Any]) -> bool:
    """Returns whether a type with rotary settings of its own has none, or some by type of layer."""
    older = _OWN_ROPE.get(given["model_type"])
    if older is None:
        return True
    ropes = given.get("rope_parameters") or {}
    if not isinstance(ropes, dict) or older & given.keys():
        return False
    return all(isinstance(each, dict) for each in ropes.values())


def _is_usual(key: str, value: Any, defaults: Mapping[str, Any]) -> bool:
    """Returns whether a value is of the type that the family expects under its key."""
    if key in _AS_GIVEN and "rope_parameters" in defaults:
        return type(value) in _AS_GIVEN[key]
    if key not in defaults:
        # Some classes have no such field, but all models that have it read it.
        return key == "head_dim" and type(value) is int
    if key in _TYPES:
        return type(value) in _TYPES[key]
    if defaults[key] is None:
        return value is None or type(value) is (list if key == "layer_types" else int)
    return type(value) is type(defaults[key])
