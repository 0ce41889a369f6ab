"""Checks the numbers of a Hugging Face configuration, so that no damage reaches the model."""

import math
from collections.abc import Mapping
from typing import Any

from emsjax.errors import UserError
from emsjax.loading.hf.keys import shown

_MOST_LAYERS = 4096
# The largest value of each size; far above any model's, and low enough to build shapes from.
_SIZES: Mapping[str, int] = {
    **dict.fromkeys(("num_hidden_layers", "n_layer"), _MOST_LAYERS),
    **dict.fromkeys(("hidden_size", "n_embd", "word_embed_proj_dim"), 1 << 20),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"), 1 << 24),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "num_key_value_heads", "num_kv_heads"), 1 << 16
    ),
    "head_dim": 1 << 16,
    **dict.fromkeys(("num_experts", "num_local_experts", "num_experts_per_tok"), 1 << 16),
    "moe_intermediate_size": 1 << 24,
    "decoder_sparse_step": 1 << 16,
    "vocab_size": 1 << 26,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "sliding_window"), 2**31 - 1),
    "original_max_position_embeddings": 2**31 - 1,
}
_OPTIONAL = (
    *("n_inner", "head_dim", "num_key_value_heads", "word_embed_proj_dim", "sliding_window"),
    *("num_kv_heads", "ffn_hidden_size"),
)
# Factors and caps, which must be above 0 if they are there.
_POSITIVE = (
    *("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping", "logit_scale"),
    *("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"),
    *("clip_qkv", "swiglu_alpha", "swiglu_limit"),
)
_EPSILONS = ("rms_norm_eps", "layer_norm_epsilon", "norm_epsilon", "layer_norm_eps", "norm_eps")


def check_ranges(config: Mapping[str, Any], origin: str) -> None:
    """Checks the ranges of the sizes in a configuration, but leaves their types to others.

    Raises:
      UserError: a size is out of range.
    """
    for key, most in _SIZES.items():
        if _whole(config.get(key)):
            _check_size(config, key, most, origin)


def check_numbers(config: Mapping[str, Any], origin: str) -> None:
    """Checks every size, factor, epsilon and end-of-text id that a configuration has.

    Args:
      config: a Hugging Face configuration, with every default filled in.
      origin: name of the configuration in messages.

    Raises:
      UserError: a value is of the wrong type or out of range.
    """
    for key, most in _SIZES.items():
        if key in config and not (config[key] is None and key in _OPTIONAL):
            _check_size(config, key, most, origin)
    for key in _EPSILONS:
        if key in config and not (is_number(config[key]) and 0 <= config[key] <= 1):
            raise _wrong(origin, key, config[key], "a number from 0 to 1")
    for key in _POSITIVE:
        value = config.get(key)
        if value is not None and not (is_number(value) and value > 0):
            raise _wrong(origin, key, value, "a number above 0")
    check_eos(config, origin)


def _check_size(config: Mapping[str, Any], key: str, most: int, origin: str) -> None:
    if not _whole(config[key]) or not 1 <= config[key] <= most:
        raise _wrong(origin, key, config[key], f"a whole number from 1 to {most}")


def check_together(config: Mapping[str, Any], origin: str) -> None:
    """Checks sizes of a complete configuration against each other.

    Raises:
      UserError: heads do not divide the hidden size or each other.
    """
    width = config.get("n_embd", config.get("hidden_size"))
    heads = config.get("n_head", config.get("num_attention_heads"))
    key = "num_kv_heads" if config.get("new_decoder_architecture") else "num_key_value_heads"
    kv_heads = config.get(key) or heads
    if not (width and heads):
        return
    if not config.get("head_dim") and width % heads:
        raise _wrong(origin, "the number of attention heads", heads, f"a divisor of {width}")
    if heads % kv_heads:
        raise _wrong(origin, key, kv_heads, f"a divisor of {heads}, the heads")
    experts = config.get("num_local_experts") or config.get("num_experts")
    each = config.get("num_experts_per_tok")
    if experts and each and each > experts:
        raise _wrong(origin, "num_experts_per_tok", each, f"at most {experts}, the experts")


def check_eos(config: Mapping[str, Any], origin: str) -> None:
    """Checks the end-of-text ids of a configuration or generation config.

    Raises:
      UserError: `eos_token_id` is not a token id or a list of them.
    """
    found = config.get("eos_token_id")
    ids = found if isinstance(found, list | tuple) else [] if found is None else [found]
    if not all(_whole(token) and 0 <= token < 2**31 for token in ids):
        raise _wrong(origin, "eos_token_id", found, "a token id or a list of token ids")


def is_number(value: object) -> bool:
    """Returns whether `value` is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _wrong(origin: str, key: str, value: object, allowed: str) -> UserError:
    return UserError(
        f"{origin} has {key}={shown(value)}, but it must be {allowed}; fix it or download the "
        "model again."
    )
