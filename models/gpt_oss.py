"""gpt-oss: experts with biases and a clamped gate in every layer, and a sink for each head."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from emsjax.models.config import ClampedGate, DecoderConfig, Experts
from emsjax.models.family import Family, WeightMap, rule
from emsjax.models.llama import layer_windows, llama_config, llama_weights
from emsjax.models.rope import rope_settings

# Unless it is configured.
_BASE = 150000.0
_YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "original_max_position_embeddings": 4096,
    "truncate": False,
}


def gpt_oss_config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Converts a Hugging Face `GptOssConfig`."""
    given = hf.get("rope_parameters")
    config = llama_config(
        hf, rope=None if given else rope_settings(hf, _BASE, **_YARN), theta=_BASE
    )
    experts = Experts(
        number=hf["num_local_experts"],
        per_row=hf["num_experts_per_tok"],
        width=config.intermediate_size,
        normalised=True,  # a softmax over those that were chosen is the same
        bias=True,
    )
    return replace(
        config,
        experts=experts,
        clamped_gate=ClampedGate(hf["swiglu_alpha"], hf["swiglu_limit"]),
        sinks=True,
        windows=layer_windows(hf, full_every=2),
    )


def gpt_oss_weights(config: DecoderConfig) -> WeightMap:
    """Returns the weight map of gpt-oss."""
    layout, layer = llama_weights(config), "layers.{}"
    router, experts = f"{layer}.mlp.router", f"{layer}.mlp.experts"
    shared = {p: rule for p, rule in layout.rules.items() if not p.startswith("blocks.mlp.")}
    rules = {
        **shared,
        "blocks.attention.sinks": rule(f"{layer}.self_attn.sinks"),
        "blocks.mlp.router": rule(f"{router}.weight"),
        "blocks.mlp.router_bias": rule(f"{router}.bias"),
        "blocks.mlp.up.kernel": rule(f"{experts}.gate_up_proj", transform=_up_kernel),
        "blocks.mlp.up.bias": rule(f"{experts}.gate_up_proj_bias", transform=_up_bias),
        "blocks.mlp.down.kernel": rule(f"{experts}.down_proj", transform=_turned),
        "blocks.mlp.down.bias": rule(f"{experts}.down_proj_bias"),
    }
    return replace(layout, rules=rules)


def _turned(tensors: Sequence[np.ndarray]) -> np.ndarray:
    """Turns the experts' kernels [E, in, out] into [E, out, in]."""
    return tensors[0].swapaxes(1, 2)


def _up_bias(tensors: Sequence[np.ndarray]) -> np.ndarray:
    """Puts the gates before the up projections; the checkpoint has them in turn, [E, 2 * inner]."""
    (mixed,) = tensors
    return np.concatenate([mixed[:, ::2], mixed[:, 1::2]], axis=1)


def _up_kernel(tensors: Sequence[np.ndarray]) -> np.ndarray:
    return _up_bias([_turned(tensors)])


_HARMLESS = frozenset({"router_aux_loss_coef", "output_router_logits"})
# The published configurations repeat two settings under names that `transformers` does not read.
_IMPLIED = {"experts_per_token": 4, "initial_context_length": 4096}
GPT_OSS = Family("gpt_oss", gpt_oss_config, gpt_oss_weights, _HARMLESS, _IMPLIED)
