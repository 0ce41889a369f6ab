"""StarCoder2: rotary positions, layer norms, biases, and a feed-forward layer without a gate."""

from collections.abc import Mapping
from typing import Any

from emsjax.models.config import DecoderConfig
from emsjax.models.family import Family, WeightMap, affine, rule
from emsjax.models.llama import activation, same_windows
from emsjax.models.rope import rope_from_config


def starcoder2_config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Returns the configuration of a Hugging Face `Starcoder2Config`."""
    head_dim, bias = hf["hidden_size"] // hf["num_attention_heads"], hf["use_bias"]
    return DecoderConfig(
        vocab_size=hf["vocab_size"],
        hidden_size=hf["hidden_size"],
        intermediate_size=hf["intermediate_size"],
        num_layers=hf["num_hidden_layers"],
        num_heads=hf["num_attention_heads"],
        num_kv_heads=hf["num_key_value_heads"],
        head_dim=head_dim,
        max_positions=hf["max_position_embeddings"],
        norm="layer",
        norm_eps=hf["norm_epsilon"],
        activation=activation(hf["hidden_act"]),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=bias,
        rope=rope_from_config(hf, head_dim),
        tied=hf["tie_word_embeddings"],
        windows=same_windows(hf),
    )


def starcoder2_weights(config: DecoderConfig) -> WeightMap:
    """Returns the checkpoint names of StarCoder2; `{}` is the layer."""
    layer = "layers.{}"
    bias, qkv = config.qkv_bias, [f"{layer}.self_attn.{name}_proj" for name in "qkv"]
    rules = {
        "embedder.tokens": rule("embed_tokens.weight"),
        **affine("final_norm", "norm", weight="scale"),
        **affine("blocks.attention_norm", f"{layer}.input_layernorm", weight="scale"),
        **affine("blocks.mlp_norm", f"{layer}.post_attention_layernorm", weight="scale"),
        **affine("blocks.attention.qkv", *qkv, bias=bias),
        **affine("blocks.attention.out", f"{layer}.self_attn.o_proj", bias=bias),
        **affine("blocks.mlp.up", f"{layer}.mlp.c_fc", bias=bias),
        **affine("blocks.mlp.down", f"{layer}.mlp.c_proj", bias=bias),
    }
    if not config.tied:
        rules["head.kernel"] = rule("lm_head.weight")
    shared = ("embed_tokens.weight", "lm_head.weight")
    return WeightMap(rules, prefixes=("model.",), shared=shared)


STARCODER2 = Family(
    "starcoder2",
    starcoder2_config,
    starcoder2_weights,
    # Names that `transformers` does not read, next to those it does.
    harmless=frozenset({"rms_norm_eps", "activation_function", "layer_norm_epsilon"}),
    implied={
        "mlp_type": "default",
        "norm_type": "layer_norm",
        **dict.fromkeys(("attention_softmax_in_fp32", "scale_attention_softmax_in_fp32"), True),
        "scale_attn_weights": True,
    },
)
