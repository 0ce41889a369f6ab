"""Configurations that together have every switch of the decoder, at widths that the kernels take.

A program takes seconds to compile, so switches of several families share one.
"""

from dataclasses import replace

from emsjax.models.config import ClampedGate, DecoderConfig, Experts, Rope

PLAIN = DecoderConfig(
    vocab_size=2048,
    hidden_size=512,
    intermediate_size=1024,
    num_layers=8,
    num_heads=8,
    num_kv_heads=4,
    head_dim=64,
    max_positions=8192,
    norm="rms",
    norm_eps=1e-5,
    activation="silu",
    gated=True,
    rope=Rope((0.1,) * 32),
)
_ROPES = Rope((0.1,) * 16, attention_factor=1.2), Rope((0.0,) * 16)
SWITCHES = {
    # Gemma 2 and 3; GLM-4 and Helium, whose heads turn in part or interleaved; SmolLM3 and EXAONE
    # 4, whose layers differ in their positions; Granite and Ministral 3, which scale.
    "around": replace(
        PLAIN,
        norm_place="around",
        norm_offset=True,
        activation="gelu_tanh",
        qk_norm="head",
        attention_soft_cap=50.0,
        logit_soft_cap=30.0,
        attention_scale=0.1,
        embedding_scale=3.0,
        query_growth=(0.1, 1024.0),
        windows=(512, 0) * 4,
        rope=_ROPES[0],
        rope_interleaved=True,
        layer_ropes=_ROPES * 4,
    ),
    # gpt-oss and OLMo 2 and 3; OLMoE, which bounds; Qwen3-MoE with layers that have no experts.
    "experts": replace(
        PLAIN,
        norm_place="after",
        qk_norm="whole",
        qkv_bias=True,
        out_bias=True,
        qkv_bound=8.0,
        sinks=True,
        windows=(128, 0) * 4,
        experts=Experts(number=8, per_row=2, width=256, normalised=True, bias=True),
        clamped_gate=ClampedGate(1.702, 7.0),
        dense_layers=(0,),
        tied=False,
    ),
    # Cohere, Falcon, Phi-1 and 2, StableLM, Nemotron, whose plain layers differ in the activation.
    "parallel": replace(
        PLAIN,
        norm="layer",
        norm_bias=False,
        parallel=True,
        one_norm=True,
        qk_norm="each",
        gated=False,
        activation="relu2",
        mlp_bias=True,
        logit_bias=True,
        residual_scale=0.5,
        logit_scale=0.5,
        tied=False,
    ),
    # OPT-350m.
    "residual": replace(
        PLAIN,
        norm="layer",
        norm_place="residual",
        final_norm=False,
        gated=False,
        activation="relu",
        rope=None,
        position_offset=2,
        embedding_size=256,
    ),
}
