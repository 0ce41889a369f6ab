"""SmolLM3: Llama without rotary embedding in some layers."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from emsjax.errors import UserError
from emsjax.models.config import DecoderConfig
from emsjax.models.family import Family
from emsjax.models.llama import layer_windows, llama_config, llama_weights


def smollm3_config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Converts a Hugging Face `SmolLM3Config`."""
    config = llama_config(hf, theta=2e6)
    every, turned = hf["no_rope_layer_interval"], hf["no_rope_layers"]
    if turned is None:
        turned = [(layer + 1) % every for layer in range(config.num_layers)]
    if len(turned) < config.num_layers:
        raise UserError(
            f"no_rope_layers has {len(turned)} entries for {config.num_layers} layers; give each "
            "layer one, or use another model"
        )
    rope = config.rope
    assert rope is not None
    return replace(
        config,
        layer_ropes=tuple(rope if turns else rope.still for turns in turned[: config.num_layers]),
        windows=layer_windows(hf, used=bool(hf.get("use_sliding_window"))),
    )


# `transformers` turns it into `layer_types`, which is read.
SMOLLM3 = Family("smollm3", smollm3_config, llama_weights, frozenset({"max_window_layers"}))
