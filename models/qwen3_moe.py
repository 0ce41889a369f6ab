"""Qwen3-MoE: Qwen3 with experts in some or all layers."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from emsjax.models.config import DecoderConfig, Experts
from emsjax.models.expert_weights import expert_weights
from emsjax.models.family import Family
from emsjax.models.llama import same_windows
from emsjax.models.qwen3 import qwen3_config


def qwen3_moe_config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Converts a Hugging Face `Qwen3MoeConfig`."""
    # `transformers` renames the first, which checkpoints have, to the second.
    by_name = hf.get("num_experts"), hf.get("num_local_experts")
    experts = Experts(
        number=next(number for number in by_name[::-1] if number is not None),
        per_row=hf["num_experts_per_tok"],
        width=hf["moe_intermediate_size"],
        normalised=hf["norm_topk_prob"],
    )
    without, every = hf["mlp_only_layers"] or (), hf["decoder_sparse_step"]
    config = qwen3_config(hf)
    dense = (n for n in range(config.num_layers) if n in without or (n + 1) % every)
    # Unlike Qwen3, it has its window in all layers.
    windows = same_windows(hf) if hf.get("use_sliding_window") else ()
    return replace(config, experts=experts, dense_layers=tuple(dense), windows=windows)


# `transformers` does not read the first, and the others matter in training only.
_HARMLESS = frozenset({"max_window_layers", "router_aux_loss_coef", "output_router_logits"})
# Qwen3-Coder says so what the type always does.
_IMPLIED = {"shared_expert_intermediate_size": 0, "use_qk_norm": True}
QWEN3_MOE = Family("qwen3_moe", qwen3_moe_config, expert_weights, _HARMLESS, _IMPLIED)
