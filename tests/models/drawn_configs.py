"""Configurations of every family, each flag drawn at random by hypothesis.

A flag is a key of the family's configuration class in `transformers` that may change the text. Each
may be absent, as in real files, so that defaults are compared as well.
"""

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

Strategy = st.SearchStrategy[Any]
Flags = dict[str, Strategy]
LENGTH = 40  # tokens of the text: longer than most windows and some trained lengths
POSITIONS = 64

BOOL = st.booleans()
WINDOW = st.integers(1, LENGTH + 5)
FACTOR = st.sampled_from([0.5, 1.0, 1.7, 3.0])
EPSILON = st.sampled_from([1e-6, 1e-5, 1e-2])
ACTIVATION = st.sampled_from(
    ["silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "swish", "relu2"]
)
LAYERS = 3
KINDS = st.lists(
    st.sampled_from(["full_attention", "sliding_attention"]), min_size=LAYERS, max_size=LAYERS
)
THETA = st.sampled_from([100.0, 10000.0, 5e5])
HEADS = st.sampled_from([(4, 2), (4, 1), (4, 4), (2, 2), (2, 1), (1, 1)])
WIDTH = 32  # heads of 8 lanes or more, of which a quarter can turn

LINEAR = {"rope_type": st.just("linear"), "factor": st.sampled_from([1.0, 2.5, 8.0])}
LLAMA3 = {
    "rope_type": st.just("llama3"),
    "factor": st.sampled_from([2.0, 8.0]),
    "low_freq_factor": st.sampled_from([1.0, 2.0]),
    "high_freq_factor": st.sampled_from([3.0, 4.0]),
    "original_max_position_embeddings": st.sampled_from([16, 32]),
}
YARN = {
    "rope_type": st.just("yarn"),
    "factor": st.sampled_from([2.0, 4.0]),
    "original_max_position_embeddings": st.sampled_from([16, 32]),
}
YARN_MORE = {
    "beta_fast": st.sampled_from([4.0, 32]),
    "beta_slow": st.sampled_from([0.5, 1]),
    "attention_factor": st.sampled_from([0.8, 1.5]),
    "truncate": BOOL,
}
GROWTH = {
    "llama_4_scaling_beta": st.sampled_from([0.1, 0.5]),
    "mscale": st.sampled_from([1.0, 0.7]),
    "mscale_all_dim": st.sampled_from([1.0, 0.5]),
}


def _scaling(yarn_more: Flags) -> Strategy:
    """Rotary settings of every type that any model may have."""
    return st.one_of(
        st.fixed_dictionaries({"rope_type": st.just("default")}),
        st.fixed_dictionaries(LINEAR),
        st.fixed_dictionaries(LLAMA3),
        st.fixed_dictionaries(YARN, optional=yarn_more),
    )


SCALING = _scaling(YARN_MORE)


def _with_theta(scaling: Strategy, more: Flags | None = None) -> Strategy:
    rest = st.fixed_dictionaries({"rope_theta": THETA}, optional=more or {})
    return st.builds(lambda one, other: one | other, scaling, rest)


# Rotary settings as newer files have them, or as older ones do; a dictionary of keys.
_NEWER = st.fixed_dictionaries({"rope_parameters": _with_theta(SCALING)})
_OLDER = st.fixed_dictionaries(
    {}, optional={"rope_theta": THETA, "rope_scaling": st.none() | SCALING}
)
ROPE = _NEWER | _OLDER


def _partial(newer: Strategy, **older: Strategy) -> Strategy:
    """Rotary settings of a family that turns heads in part."""
    part = {"partial_rotary_factor": st.sampled_from([0.25, 0.5, 1.0])}
    return st.fixed_dictionaries({"rope_parameters": _with_theta(newer, part)}) | (
        st.fixed_dictionaries({}, optional={"rope_scaling": st.none() | newer, **older})
    )


# `transformers` ignores a `truncate` that is given for one kind of layer, so it is refused.
_OF_KIND = _with_theta(_scaling({key: YARN_MORE[key] for key in YARN_MORE if key != "truncate"}))
_BY_KIND = st.fixed_dictionaries(
    {
        "rope_parameters": st.fixed_dictionaries(
            {"full_attention": _OF_KIND, "sliding_attention": _OF_KIND}
        )
    }
)
_SCALED = st.fixed_dictionaries(LINEAR) | st.fixed_dictionaries(LLAMA3)
_OLDER_BY_KIND = st.fixed_dictionaries(
    {}, optional={"rope_theta": THETA, "rope_scaling": _SCALED, "rope_local_base_freq": THETA}
)
_GROWING = st.fixed_dictionaries(
    {
        "rope_parameters": st.fixed_dictionaries(
            YARN | {"rope_theta": THETA, "llama_4_scaling_beta": GROWTH["llama_4_scaling_beta"]},
            optional=YARN_MORE | {key: GROWTH[key] for key in ("mscale", "mscale_all_dim")},
        )
    }
)


@st.composite
def _longrope(draw: st.DrawFn, head_dim: int) -> dict[str, Any]:
    """Rotary settings of Phi-3, whose lists are as long as the turned part of a head."""
    part = draw(st.sampled_from([0.5, 1.0]))
    pairs = int(head_dim * part) // 2
    if draw(BOOL):
        return draw(st.fixed_dictionaries({"rope_theta": THETA})) | {"partial_rotary_factor": part}
    factors = st.lists(st.sampled_from([1.0, 1.5, 4.0]), min_size=pairs, max_size=pairs)
    kind = {draw(st.sampled_from(["type", "rope_type"])): "longrope"}
    lists = st.fixed_dictionaries({"short_factor": factors, "long_factor": factors})
    more = st.fixed_dictionaries({}, optional={"factor": FACTOR, "attention_factor": FACTOR})
    # Up to the trained length only: emsjax refuses longer texts.
    trained = draw(st.integers(LENGTH, POSITIONS))
    return {
        "rope_scaling": kind | draw(lists) | draw(more),
        "rope_theta": draw(THETA),
        "partial_rotary_factor": part,
        "original_max_position_embeddings": trained,
    }


LLAMA: Flags = {
    "attention_bias": BOOL,
    "mlp_bias": BOOL,
    "hidden_act": ACTIVATION,
    "rms_norm_eps": EPSILON,
    "tie_word_embeddings": BOOL,
}
_NO_MLP_BIAS = {key: LLAMA[key] for key in LLAMA if key != "mlp_bias"}
_NO_BIAS = {key: _NO_MLP_BIAS[key] for key in _NO_MLP_BIAS if key != "attention_bias"}
_SOMETIMES: Flags = {
    "use_sliding_window": BOOL,
    "sliding_window": WINDOW,
    "max_window_layers": st.integers(0, LAYERS),
    "layer_types": KINDS,
}
_GEMMA2 = {key: _NO_MLP_BIAS[key] for key in _NO_MLP_BIAS if key != "hidden_act"} | {
    "hidden_activation": ACTIVATION,
    "query_pre_attn_scalar": st.sampled_from([4, 20, 256]),
    "final_logit_softcapping": st.none() | st.sampled_from([2.0, 5.0]),
    "sliding_window": WINDOW,
    "layer_types": KINDS,
}
_COHERE: Flags = {
    "attention_bias": BOOL,
    "hidden_act": ACTIVATION,
    "layer_norm_eps": EPSILON,
    "logit_scale": FACTOR,
    "tie_word_embeddings": BOOL,
}
FLAGS: Mapping[str, Flags] = {
    "opt": {
        "activation_function": ACTIVATION,
        "do_layer_norm_before": BOOL,
        "_remove_final_layer_norm": BOOL,
        "word_embed_proj_dim": st.sampled_from([None, 16, WIDTH]),
        "enable_bias": BOOL,
        "tie_word_embeddings": BOOL,
        "ffn_dim": st.sampled_from([20, 48]),
    },
    "gpt2": {
        "activation_function": ACTIVATION,
        "layer_norm_epsilon": EPSILON,
        "n_inner": st.sampled_from([None, 20]),
        "tie_word_embeddings": BOOL,
    },
    "llama": LLAMA,
    "mistral": _NO_BIAS | {"sliding_window": st.none() | WINDOW},
    "qwen2": _NO_BIAS | _SOMETIMES,
    "qwen3": _NO_MLP_BIAS | _SOMETIMES,
    "gemma": _NO_MLP_BIAS,
    "gemma2": _GEMMA2 | {"attn_logit_softcapping": st.none() | st.sampled_from([1.0, 5.0])},
    "gemma3_text": _GEMMA2 | {"sliding_window_pattern": st.integers(1, LAYERS + 1)},
    "smollm3": LLAMA
    | _SOMETIMES
    | {
        "no_rope_layers": st.lists(st.integers(0, 1), min_size=LAYERS, max_size=LAYERS),
        "no_rope_layer_interval": st.integers(1, LAYERS + 1),
    },
    "granite": LLAMA
    | {
        "embedding_multiplier": FACTOR,
        "attention_multiplier": st.sampled_from([0.1, 0.5, 1.0]),
        "residual_multiplier": FACTOR,
        "logits_scaling": FACTOR,
    },
    "olmo2": _NO_MLP_BIAS,
    "olmo3": _NO_MLP_BIAS | {"sliding_window": WINDOW, "layer_types": KINDS},
    "phi3": _NO_BIAS | {"sliding_window": st.none() | WINDOW},
    "ministral3": _NO_BIAS | {"sliding_window": st.none() | WINDOW},
    "gpt_neox": {
        "hidden_act": ACTIVATION,
        "layer_norm_eps": EPSILON,
        "use_parallel_residual": BOOL,
        "attention_bias": BOOL,
        "tie_word_embeddings": BOOL,
    },
    "starcoder2": {
        "hidden_act": ACTIVATION,
        "norm_epsilon": EPSILON,
        "use_bias": BOOL,
        "tie_word_embeddings": BOOL,
        "sliding_window": st.none() | WINDOW,
    },
    "cohere": _COHERE | {"use_qk_norm": BOOL},
    "cohere2": _COHERE
    | {
        "sliding_window": WINDOW,
        "sliding_window_pattern": st.integers(1, LAYERS + 1),
        "layer_types": KINDS,
    },
    "glm4": _NO_MLP_BIAS,
    "exaone4": _NO_BIAS
    | {
        "sliding_window": st.none() | WINDOW,
        "sliding_window_pattern": st.integers(1, LAYERS + 1),
        "layer_types": KINDS,
    },
    "nemotron": {key: LLAMA[key] for key in LLAMA if key != "rms_norm_eps"} | {"norm_eps": EPSILON},
    "phi": {
        "hidden_act": ACTIVATION,
        "layer_norm_eps": EPSILON,
        "qk_layernorm": BOOL,
        "tie_word_embeddings": BOOL,
    },
    "stablelm": {
        "hidden_act": ACTIVATION,
        "layer_norm_eps": EPSILON,
        "use_qkv_bias": BOOL,
        "qk_layernorm": BOOL,
        "use_parallel_residual": BOOL,
        "tie_word_embeddings": BOOL,
    },
    "falcon": {
        "activation": ACTIVATION,
        "layer_norm_epsilon": EPSILON,
        "num_ln_in_parallel_attn": st.sampled_from([None, 1, 2]),
        "new_decoder_architecture": BOOL,
        "multi_query": BOOL,
        "parallel_attn": BOOL,
        "bias": BOOL,
        "ffn_hidden_size": st.sampled_from([None, 20]),
        "tie_word_embeddings": BOOL,
    },
    "helium": LLAMA,
}
_PART = st.sampled_from([0.25, 0.5, 1.0])
_ROPES: Mapping[str, Strategy] = {
    "gemma3_text": _BY_KIND | _OLDER_BY_KIND,
    "olmo3": _BY_KIND
    | st.fixed_dictionaries({}, optional={"rope_theta": THETA, "rope_scaling": _SCALED}),
    "ministral3": _GROWING,
    "gpt_neox": _partial(SCALING, rotary_pct=_PART, rotary_emb_base=THETA),
    **dict.fromkeys(
        ("glm4", "nemotron", "phi", "stablelm"),
        _partial(SCALING, partial_rotary_factor=_PART, rope_theta=THETA),
    ),
}
# Width of a head where that is a key of its own.
_OWN_WIDTH = (
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "ministral3"),
    *("glm4", "nemotron", "exaone4"),
)


@st.composite
def configs(draw: st.DrawFn, model_type: str) -> dict[str, Any]:
    """Draws a configuration of a small model, as in its `config.json`."""
    (heads, kv_heads), head_dim = draw(HEADS), None
    flags = draw(st.fixed_dictionaries({}, optional=FLAGS[model_type]))
    if "use_sliding_window" in FLAGS[model_type] and not (
        flags.get("use_sliding_window") and "sliding_window" in flags
    ):
        flags.pop("layer_types", None)  # may have a type that needs a window
    if model_type == "granite":  # by default scores are so large that float32 is not enough
        flags.setdefault("attention_multiplier", 0.1)
    if model_type == "gpt2":
        sizes = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": heads, "n_positions": POSITIONS}
        return sizes | flags
    if model_type == "exaone4" and flags.get("sliding_window", 1) is None:
        flags["layer_types"] = ["full_attention"] * LAYERS  # `transformers` cannot count them
    sizes = {
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": heads,
        "max_position_embeddings": POSITIONS,
    }
    if model_type == "opt":
        return {"ffn_dim": 4 * WIDTH, "word_embed_proj_dim": WIDTH} | sizes | flags
    if model_type == "falcon":
        sizes["num_kv_heads"] = kv_heads
        return sizes | flags | draw(ROPE)
    sizes["intermediate_size"] = draw(st.sampled_from([20, 48]))
    if model_type != "gpt_neox":
        sizes["num_key_value_heads"] = kv_heads
    if model_type in _OWN_WIDTH:
        sizes["head_dim"] = draw(st.sampled_from([8, 16, 24]))
    if model_type == "helium":  # whose heads must fill the hidden size
        sizes["head_dim"] = WIDTH // heads
    if model_type == "phi3":
        return sizes | flags | draw(_longrope(WIDTH // heads))
    return sizes | flags | draw(_ROPES.get(model_type, ROPE))
