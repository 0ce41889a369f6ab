"""Mixtral: Mistral with experts in every layer."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from emsjax.models.config import DecoderConfig, Experts
from emsjax.models.expert_weights import ExpertNames, expert_weights
from emsjax.models.family import Family, WeightMap
from emsjax.models.llama import llama_config, same_windows


def mixtral_config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Converts a Hugging Face `MixtralConfig`."""
    config = llama_config(hf, theta=1e6)
    experts = Experts(
        number=hf["num_local_experts"],
        per_row=hf["num_experts_per_tok"],
        width=config.intermediate_size,
        normalised=True,
    )
    return replace(config, experts=experts, windows=same_windows(hf))


def mixtral_weights(config: DecoderConfig) -> WeightMap:
    """Returns the weight map of Mixtral."""
    return expert_weights(config, ExpertNames("block_sparse_moe", "w1", "w3", "w2"))


# They matter in training only.
_HARMLESS = frozenset({"router_aux_loss_coef", "output_router_logits", "router_jitter_noise"})
MIXTRAL = Family("mixtral", mixtral_config, mixtral_weights, _HARMLESS)
