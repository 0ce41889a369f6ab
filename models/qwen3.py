"""Qwen3: Llama with an RMS norm on each query and key head."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from emsjax.models.config import DecoderConfig
from emsjax.models.family import Family
from emsjax.models.llama import layer_windows, llama_config, llama_weights


def qwen3_config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Converts a Hugging Face `Qwen3Config`."""
    windows = layer_windows(hf, used=bool(hf.get("use_sliding_window")))
    return replace(llama_config(hf), qk_norm="head", windows=windows)


# `transformers` turns it into `layer_types`, which is read.
_HARMLESS = frozenset({"max_window_layers"})
QWEN3 = Family("qwen3", qwen3_config, llama_weights, _HARMLESS)
