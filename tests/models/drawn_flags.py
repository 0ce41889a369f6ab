"""The flags of each family: keys of its configuration that may change the text, drawn at random.

The classes of `transformers` say which there are; `test_every_flag_is_drawn` compares.
"""

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from tests.models.drawn_ropes import LENGTH

Flags = dict[str, st.SearchStrategy[Any]]
LAYERS = 3
WIDTH = 32  # heads of 8 lanes or more, of which a quarter can turn

BOOL = st.booleans()
WINDOW = st.integers(1, LENGTH + 5)
FACTOR = st.sampled_from([0.5, 1.0, 1.7, 3.0])
EPSILON = st.sampled_from([1e-6, 1e-5, 1e-2])
ACTIVATION = st.sampled_from(
    ["silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "swish", "relu2"]
)
KINDS = st.lists(
    st.sampled_from(["full_attention", "sliding_attention"]), min_size=LAYERS, max_size=LAYERS
)

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
# Some files have both, of which `transformers` reads one.
_GEMMA = _NO_MLP_BIAS | {"hidden_activation": ACTIVATION}
_GEMMA2 = _GEMMA | {
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
    "mimo": _NO_BIAS | _SOMETIMES,
    "qwen3": _NO_MLP_BIAS | _SOMETIMES,
    "gemma": _GEMMA,
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
        "sliding_window_pattern": st.integers(1, LAYERS + 1) | st.just("LLG"),
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
    "mixtral": _NO_BIAS | {"sliding_window": st.none() | WINDOW},
    "qwen3_moe": _NO_MLP_BIAS
    | {
        "use_sliding_window": BOOL,
        "sliding_window": WINDOW,
        "norm_topk_prob": BOOL,
        "decoder_sparse_step": st.integers(1, LAYERS),
        "mlp_only_layers": st.none() | st.lists(st.integers(0, LAYERS - 1), unique=True),
    },
    "gpt_oss": _NO_MLP_BIAS
    | {
        "sliding_window": WINDOW,
        "layer_types": KINDS,
        "swiglu_alpha": FACTOR,
        "swiglu_limit": FACTOR,
    },
    "olmoe": _NO_MLP_BIAS
    | {"norm_topk_prob": BOOL, "clip_qkv": st.none() | st.sampled_from([0.5, 2.0])},
}
