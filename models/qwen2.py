"""Qwen2 and Qwen2.5: Llama with query, key and value biases; and MiMo-7B, which is Qwen2."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from emsjax.models.config import DecoderConfig
from emsjax.models.family import Family, WeightMap
from emsjax.models.llama import layer_windows, llama_config, llama_weights


def qwen2_config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Converts a Hugging Face `Qwen2Config`."""
    windows = layer_windows(hf, used=bool(hf.get("use_sliding_window")))
    return replace(llama_config(hf), qkv_bias=True, out_bias=False, windows=windows)


def mimo_weights(config: DecoderConfig) -> WeightMap:
    """Returns the weight map of MiMo without its MTP modules, which only a drafter reads."""
    layout = llama_weights(config)
    return replace(layout, ignore=(*layout.ignore, r"mtp_layers\..*"))


# `transformers` turns it into `layer_types`, which is read.
_HARMLESS = frozenset({"max_window_layers"})
QWEN2 = Family("qwen2", qwen2_config, llama_weights, _HARMLESS)
MIMO = Family("mimo", qwen2_config, mimo_weights, _HARMLESS | {"num_nextn_predict_layers"})
