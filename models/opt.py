"""OPT in all sizes. 350m normalises after each sublayer and has a narrower embedding."""

from collections.abc import Mapping
from typing import Any

from emsjax.errors import UserError
from emsjax.models.config import DecoderConfig
from emsjax.models.family import Family, WeightMap, affine, rule
from emsjax.models.llama import activation


def opt_config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Converts a Hugging Face `OPTConfig`."""
    if not hf.get("layer_norm_elementwise_affine", True):
        raise UserError(
            "an OPT model without weights in its layer norms is not supported; use another one"
        )
    width, heads = hf["hidden_size"], hf["num_attention_heads"]
    embedding, bias = hf.get("word_embed_proj_dim") or width, hf.get("enable_bias", True)
    pre_norm, none = hf.get("do_layer_norm_before", True), hf.get("_remove_final_layer_norm", False)
    return DecoderConfig(
        vocab_size=hf["vocab_size"],
        hidden_size=width,
        intermediate_size=hf["ffn_dim"],
        num_layers=hf["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=width // heads,
        max_positions=hf["max_position_embeddings"],
        norm="layer",
        norm_eps=1e-5,
        activation=activation(hf["activation_function"]),
        norm_place="before" if pre_norm else "residual",
        final_norm=pre_norm and not none,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=bias,
        position_offset=2,  # the first two rows of the table are reserved for padding
        embedding_size=None if embedding == width else embedding,
        tied=hf.get("tie_word_embeddings", True),
    )


def opt_weights(config: DecoderConfig) -> WeightMap:
    """Returns the weight map of OPT."""
    layer = "layers.{}"
    attention = f"{layer}.self_attn"
    qkv = [f"{attention}.{name}_proj" for name in "qkv"]
    rules = {
        "embedder.tokens": rule("embed_tokens.weight"),
        "embedder.positions": rule("embed_positions.weight"),
        **affine("blocks.attention_norm", f"{layer}.self_attn_layer_norm", weight="scale"),
        **affine("blocks.mlp_norm", f"{layer}.final_layer_norm", weight="scale"),
        **affine("blocks.attention.qkv", *qkv, bias=config.qkv_bias),
        **affine("blocks.attention.out", f"{attention}.out_proj", bias=config.out_bias),
        **affine("blocks.mlp.up", f"{layer}.fc1", bias=config.mlp_bias),
        **affine("blocks.mlp.down", f"{layer}.fc2", bias=config.mlp_bias),
    }
    if config.final_norm:
        rules |= affine("final_norm", "final_layer_norm", weight="scale")
    if config.embedding_size is not None:
        rules["embedder.project_in.kernel"] = rule("project_in.weight")
        rules["embedder.project_out.kernel"] = rule("project_out.weight")
    if not config.tied:
        rules["head.kernel"] = rule("lm_head.weight")
    shared = ("embed_tokens.weight", "lm_head.weight")
    return WeightMap(rules, prefixes=("model.decoder.", "decoder."), shared=shared)


OPT = Family("opt", opt_config, opt_weights, harmless=frozenset())
