"""Settings of a Hugging Face configuration that only some GGUF architectures have."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from emsjax.errors import UserError
from emsjax.loading.gguf.file import GgufFile

Settings = dict[str, Any]


def _gemma3(file: GgufFile, settings: Settings) -> Settings:
    """Adds windows, the second rotary table and the scale of the scores."""
    layers = settings["num_hidden_layers"]
    windowed = bool(file.get("{arch}.attention.sliding_window"))  # neither missing nor 0
    every = file.whole("{arch}.attention.sliding_window_pattern", 6) if windowed else 1
    kinds = ["sliding_attention" if n % every else "full_attention" for n in range(1, layers + 1)]
    local = file.number("{arch}.rope.freq_base_swa", 10000.0)
    # The largest model, which llama.cpp knows by its layers, scales by another width.
    width = settings["hidden_size"] // settings["num_attention_heads"]
    return {
        "layer_types": kinds,
        "sliding_window": file.whole("{arch}.attention.sliding_window") if windowed else 4096,
        "query_pre_attn_scalar": width if layers == 62 else settings["head_dim"],
        "rope_parameters": {
            "full_attention": settings["rope_parameters"],
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        },
    }


def _phi3(file: GgufFile, settings: Settings) -> Settings:
    """Adds the window, the part of a head that turns, and LongRoPE."""
    trained = file.whole(
        "{arch}.rope.scaling.original_context_length", settings["max_position_embeddings"]
    )
    turned = file.whole("{arch}.rope.dimension_count", settings["head_dim"])
    rope = settings["rope_parameters"] | {"partial_rotary_factor": turned / settings["head_dim"]}
    short, long = (file.factors(f"rope_factors_{name}.weight") for name in ("short", "long"))
    if (short is None) != (long is None):
        raise UserError(
            f"{file.name} has one of rope_factors_short and rope_factors_long without the other; "
            "use another GGUF file."
        )
    if short is not None and long is not None:
        rope |= {
            "rope_type": "longrope",
            "short_factor": short.tolist(),
            "long_factor": long.tolist(),
            "original_max_position_embeddings": trained,
        }
        if file.get("{arch}.rope.scaling.attn_factor") is not None:
            rope["attention_factor"] = file.number("{arch}.rope.scaling.attn_factor")
    return {
        "sliding_window": file.get("{arch}.attention.sliding_window") or None,  # 0 is none
        "original_max_position_embeddings": trained,
        "rope_parameters": rope,
    }


def _smollm3(_file: GgufFile, _settings: Settings) -> Settings:
    """Adds the layers without positions, of which a file says nothing."""
    return {"no_rope_layer_interval": 4}


_OWN: Mapping[str, Callable[[GgufFile, Settings], Settings]] = MappingProxyType(
    {"gemma3": _gemma3, "phi3": _phi3, "smollm3": _smollm3}
)


def own_settings(file: GgufFile, settings: Settings) -> Settings:
    """Returns the settings that only the file's architecture has, given those of all."""
    add = _OWN.get(file.architecture)
    return {} if add is None else add(file, settings)
