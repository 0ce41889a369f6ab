"""GPT-2. Its checkpoints store kernels as [in, out], while emsjax uses [out, in]."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from emsjax.errors import UserError
from emsjax.models.config import DecoderConfig
from emsjax.models.family import Family, WeightMap, affine, rule
from emsjax.models.llama import activation


def gpt2_config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Converts a Hugging Face `GPT2Config`."""
    if not hf.get("scale_attn_weights", True) or hf.get("scale_attn_by_inverse_layer_idx"):
        raise UserError(
            "a GPT-2 model with unusual attention scaling is not supported; use another one"
        )
    width, heads = hf["n_embd"], hf["n_head"]
    return DecoderConfig(
        vocab_size=hf["vocab_size"],
        hidden_size=width,
        intermediate_size=hf.get("n_inner") or 4 * width,
        num_layers=hf["n_layer"],
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=width // heads,
        max_positions=hf["n_positions"],
        norm="layer",
        norm_eps=hf["layer_norm_epsilon"],
        activation=activation(hf["activation_function"]),
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        tied=hf.get("tie_word_embeddings", True),
    )


def _transposed(tensors: Sequence[np.ndarray]) -> np.ndarray:
    return tensors[0].T


def gpt2_weights(config: DecoderConfig) -> WeightMap:
    """Returns the weight map of GPT-2, whose fused `c_attn` already has our order of rows."""
    layer = "h.{}"
    rules = {
        "embedder.tokens": rule("wte.weight"),
        "embedder.positions": rule("wpe.weight"),
        **affine("final_norm", "ln_f", weight="scale"),
        **affine("blocks.attention_norm", f"{layer}.ln_1", weight="scale"),
        **affine("blocks.mlp_norm", f"{layer}.ln_2", weight="scale"),
    }
    linears = {
        "attention.qkv": "attn.c_attn",
        "attention.out": "attn.c_proj",
        "mlp.up": "mlp.c_fc",
        "mlp.down": "mlp.c_proj",
    }
    for ours, theirs in linears.items():
        rules |= affine(f"blocks.{ours}", f"{layer}.{theirs}", transform=_transposed)
    ignore = (r"h\.\d+\.attn\.(masked_)?bias",)
    shared = ("wte.weight", "lm_head.weight")
    if not config.tied:
        rules["head.kernel"] = rule("lm_head.weight")
    return WeightMap(rules, ignore, ("transformer.",), shared)


_HARMLESS = frozenset(
    {
        *("resid_pdrop", "embd_pdrop", "attn_pdrop", "n_ctx", "n_special"),
        *("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels"),
        *("summary_first_dropout", "summary_hidden_size", "summary_use_pooler"),
        "predict_special_tokens",
        "reorder_and_upcast_attn",  # only keeps float16 from overflowing
    }
)
GPT2 = Family("gpt2", gpt2_config, gpt2_weights, _HARMLESS)
