"""OLMoE: Llama with experts, norms over all queries and all keys, and perhaps a bound on them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from emsjax.models.config import DecoderConfig, Experts
from emsjax.models.expert_weights import expert_weights
from emsjax.models.family import Family
from emsjax.models.llama import llama_config


def olmoe_config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Converts a Hugging Face `OlmoeConfig`."""
    config = llama_config(hf)
    experts = Experts(
        number=hf["num_experts"],
        per_row=hf["num_experts_per_tok"],
        width=config.intermediate_size,
        normalised=hf["norm_topk_prob"],
    )
    return replace(config, experts=experts, qk_norm="whole", qkv_bound=hf["clip_qkv"])


# They matter in training only.
_HARMLESS = frozenset({"router_aux_loss_coef", "output_router_logits"})
OLMOE = Family("olmoe", olmoe_config, expert_weights, _HARMLESS)
