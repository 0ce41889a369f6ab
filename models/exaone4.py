"""EXAONE 4: norms after the sublayers and on heads; only layers with a window have positions."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from emsjax.errors import UserError
from emsjax.models.config import DecoderConfig
from emsjax.models.family import Family
from emsjax.models.llama import layer_kinds, layer_windows, llama_config, llama_weights
from emsjax.models.rope import SLIDING


def exaone4_config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Converts a Hugging Face `Exaone4Config`."""
    config = replace(llama_config(hf), norm_place="after", qk_norm="head")
    rope, full_every = config.rope, hf["sliding_window_pattern"]
    assert rope is not None
    if hf["sliding_window"] is None:  # then all layers have positions
        if hf["layer_types"] is None:
            raise UserError(
                "an EXAONE 4 model without sliding_window needs layer_types, as in `transformers`; "
                "give each layer full_attention"
            )
        return replace(config, windows=layer_windows(hf))
    kinds = layer_kinds(hf, full_every=full_every)
    return replace(
        config,
        windows=layer_windows(hf, full_every=full_every),
        layer_ropes=tuple(rope if kind == SLIDING else rope.still for kind in kinds),
    )


EXAONE4 = Family("exaone4", exaone4_config, llama_weights, frozenset({"cache_implementation"}))
