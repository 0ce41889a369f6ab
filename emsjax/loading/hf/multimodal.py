"""Finds the language model in the configuration of a multimodal model."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from emsjax.errors import UserError
from emsjax.loading.hf.keys import shown

# Model type of the whole, and of its language model; the first is that of one without a type.
TEXT_PARTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "gemma3": ("gemma3_text",),
        "mistral3": ("mistral", "ministral3"),
        **dict.fromkeys(("aya_vision", "cohere2_vision"), ("cohere2",)),
    }
)
# Settings of the other parts.
_OTHERS = frozenset(
    {
        *("model_type", "text_config", "vision_config", "architectures", "mm_tokens_per_image"),
        *("image_token_id", "image_token_index", "boi_token_index", "eoi_token_index"),
        *("initializer_range", "boi_token_id", "eoi_token_id", "multimodal_projector_bias"),
        *("projector_hidden_act", "spatial_merge_size", "vision_feature_layer"),
        *("vision_feature_select_strategy", "downsample_factor", "adapter_layer_norm_eps"),
        "alignment_intermediate_size",
    }
)


def is_multimodal(given: Mapping[str, Any]) -> bool:
    """Returns whether a configuration is of a multimodal model whose text part is supported."""
    kind = given.get("model_type")
    return isinstance(kind, str) and kind in TEXT_PARTS


def text_part(given: Mapping[str, Any], origin: str) -> Mapping[str, Any]:
    """Returns the configuration of a multimodal model's text part; another one is returned as is.

    Args:
      given: a Hugging Face configuration.
      origin: name of the configuration in messages.

    Raises:
      UserError: the text part is missing or of another type.
    """
    if not is_multimodal(given):
        return given
    kinds, text = TEXT_PARTS[given["model_type"]], given.get("text_config")
    kind = text.get("model_type", kinds[0]) if isinstance(text, Mapping) else text
    if not isinstance(text, Mapping) or kind not in kinds:
        raise UserError(
            f"{origin} has text_config {shown(kind)}, but emsjax reads only the text part "
            f"{' or '.join(map(repr, kinds))} of {given['model_type']!r}; fix it or download it "
            "again."
        )
    # End-of-text ids, ties and quantisation are settings of the whole.
    whole = {key: given[key] for key in given if key not in _OTHERS}
    return {**text, **whole, "model_type": kind}
