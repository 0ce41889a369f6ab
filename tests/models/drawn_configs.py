"""Configurations of every family, each flag drawn at random by hypothesis.

A flag may be absent, as in real files, so that defaults are compared as well.
"""

import dataclasses
from typing import Any

from hypothesis import strategies as st

from emsjax.loading.hf.defaults import type_of_transformers
from tests.models.drawn_flags import FLAGS, LAYERS, WIDTH
from tests.models.drawn_ropes import POSITIONS, ropes_of

# Query heads and key/value heads.
_HEADS = st.sampled_from([(4, 2), (4, 1), (4, 4), (2, 2), (2, 1), (1, 1)])


@st.composite
def configs(draw: st.DrawFn, model_type: str) -> dict[str, Any]:
    """Draws a configuration of a small model, as in its `config.json`."""
    sizes = draw(_sizes(model_type))
    flags = draw(st.fixed_dictionaries({}, optional=FLAGS[model_type]))
    _make_possible(model_type, sizes, flags)
    if model_type in ("opt", "gpt2"):
        return sizes | flags
    head_dim = sizes.get("head_dim") or WIDTH // sizes["num_attention_heads"]
    return sizes | flags | draw(ropes_of(model_type, head_dim))


@st.composite
def _sizes(draw: st.DrawFn, model_type: str) -> dict[str, Any]:
    """Draws the sizes, under the names that the family has for them."""
    from transformers import CONFIG_MAPPING

    (heads, kv_heads), inner = draw(_HEADS), draw(st.sampled_from([20, 48]))
    sizes = {
        **dict.fromkeys(("hidden_size", "n_embd", "word_embed_proj_dim"), WIDTH),
        **dict.fromkeys(("num_hidden_layers", "n_layer"), LAYERS),
        **dict.fromkeys(("num_attention_heads", "n_head"), heads),
        **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), kv_heads),
        **dict.fromkeys(("max_position_embeddings", "n_positions"), POSITIONS),
        **dict.fromkeys(("intermediate_size", "ffn_dim"), inner),
        **dict.fromkeys(("num_experts", "num_local_experts"), 4),
        "num_experts_per_tok": draw(st.integers(1, 4)),
        "moe_intermediate_size": inner,
        # Helium's heads fill the hidden size.
        "head_dim": WIDTH // heads if model_type == "helium" else draw(st.sampled_from([8, 16])),
    }
    known = CONFIG_MAPPING[type_of_transformers(model_type)]
    keys = {field.name for field in dataclasses.fields(known)}
    return {key: sizes[key] for key in sizes if key in keys}


def _make_possible(model_type: str, sizes: dict[str, Any], flags: dict[str, Any]) -> None:
    """Changes what `transformers` itself cannot run."""
    if "use_sliding_window" in FLAGS[model_type]:
        windowed = flags.get("use_sliding_window") and "sliding_window" in flags
        if not windowed:
            flags.pop("layer_types", None)  # a type may need a window
    if model_type == "exaone4":
        if flags.get("sliding_window_pattern") == "LLG":
            flags.setdefault("layer_types", ["sliding_attention"] * 2 + ["full_attention"])
        if flags.get("sliding_window", 1) is None:
            flags["layer_types"] = ["full_attention"] * LAYERS
    if model_type == "falcon":  # has no norms for the others
        new = flags.get("new_decoder_architecture")
        flags.pop("parallel_attn" if new else "num_ln_in_parallel_attn", None)
        if not new:
            sizes["num_kv_heads"] = sizes["num_attention_heads"]
