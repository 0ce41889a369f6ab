"""Published configurations of the families that joined after the first six, see `published`."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

Config = dict[str, Any]


def sizes(
    model_type: str, width: int, inner: int, layers: int, heads: tuple[int, int], **more: Any
) -> Config:
    """Returns the sizes of a model; `heads` is (query heads, key/value heads)."""
    return {
        "model_type": model_type,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
    } | more


def _gemma3(
    width: int, inner: int, layers: int, heads: tuple[int, int], long: bool = True, **more: Any
) -> Config:
    """Returns the settings of Gemma 3's text part; the small ones are not `long`."""
    scaling = {"rope_type": "linear", "factor": 8.0} if long else {"rope_type": "default"}
    settings: Config = {
        "head_dim": 256,
        "rope_parameters": {
            "full_attention": {"rope_theta": 1000000.0} | scaling,
            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
        },
        "sliding_window": 1024 if long else 512,
    }
    if not long:
        settings |= {"vocab_size": 262144, "max_position_embeddings": 32768}
    return sizes("gemma3_text", width, inner, layers, heads, **settings | more)


def _granite3(inner: int, width: int, scores: float, logits: float, **more: Any) -> Config:
    """Returns the settings of Granite 3.0."""
    settings: Config = {
        "vocab_size": 49155,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "embedding_multiplier": 12.0,
        "residual_multiplier": 0.22,
        "attention_multiplier": scores,
        "logits_scaling": logits,
        "eos_token_id": 0,
    }
    return sizes("granite", width, inner, 40, (32, 8), **settings | more)


def _olmo2(width: int, inner: int, layers: int, heads: int) -> Config:
    settings: Config = {"vocab_size": 100352, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6}
    settings |= {"rope_theta": 500000.0, "eos_token_id": 100257}
    return sizes("olmo2", width, inner, layers, (heads, heads), **settings)


def _olmo3(width: int, inner: int, layers: int, heads: tuple[int, int]) -> Config:
    settings: Config = {
        "vocab_size": 100278,
        "max_position_embeddings": 65536,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 500000.0},
            "full_attention": {
                "rope_type": "yarn",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "original_max_position_embeddings": 8192,
                "attention_factor": 1.2079441541679836,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
            },
        },
        "sliding_window": 4096,
        "eos_token_id": 100257,
    }
    return sizes("olmo3", width, inner, layers, heads, **settings)


def _qwen3_moe(width: int, inner: int, layers: int, heads: int, experts: int) -> Config:
    """Returns the settings of Qwen3-MoE; `experts` is the width of each."""
    settings: Config = {
        "head_dim": 128,
        "rope_theta": 1000000.0,
        "max_position_embeddings": 40960,
        "moe_intermediate_size": experts,
        "norm_topk_prob": True,
        "eos_token_id": 151645,
    }
    return sizes("qwen3_moe", width, inner, layers, (heads, 4), **settings)


def _falcon(width: int, layers: int, heads: int, **more: Any) -> Config:
    config = sizes("falcon", width, 4 * width, layers, (heads, 1), **more)
    return {k: config[k] for k in config if k not in ("intermediate_size", "num_key_value_heads")}


def _pythia(width: int, layers: int, heads: int, vocab_size: int = 50304) -> Config:
    settings: Config = {"vocab_size": vocab_size, "eos_token_id": 0}
    config = sizes("gpt_neox", width, 4 * width, layers, (heads, heads), **settings)
    return {key: value for key, value in config.items() if key != "num_key_value_heads"}


_GLM4: Config = {"max_position_embeddings": 32768, "rms_norm_eps": 1e-5}
_EXAONE4_ROPE: Config = {
    "rope_type": "llama3",
    "rope_theta": 1000000.0,
    "factor": 16.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_PHI2_ROPE: Config = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.4}

PUBLISHED_SINCE: Mapping[str, Config] = MappingProxyType(
    {
        "gemma-2b": sizes("gemma", 2048, 16384, 18, (8, 1)),
        "gemma-7b": sizes("gemma", 3072, 24576, 28, (16, 16)),
        "gemma-2-2b": sizes("gemma2", 2304, 9216, 26, (8, 4)),
        "gemma-2-9b": sizes("gemma2", 3584, 14336, 42, (16, 8)),
        "gemma-2-27b": sizes(
            "gemma2", 4608, 36864, 46, (32, 16), head_dim=128, query_pre_attn_scalar=144
        ),
        "gemma-3-270m": _gemma3(640, 2048, 18, (4, 1), long=False),
        "gemma-3-1b": _gemma3(1152, 6912, 26, (4, 1), long=False),
        # The text parts.
        "gemma-3-4b": _gemma3(2560, 10240, 34, (8, 4)),
        "gemma-3-12b": _gemma3(3840, 15360, 48, (16, 8)),
        "gemma-3-27b": _gemma3(5376, 21504, 62, (32, 16), head_dim=128, query_pre_attn_scalar=168),
        "smollm3-3b": sizes(
            "smollm3",
            2048,
            11008,
            36,
            (16, 4),
            rope_theta=5000000.0,
            max_position_embeddings=65536,
        ),
        "granite-3.0-2b": _granite3(8192, 2048, 0.015625, 8.0, tie_word_embeddings=True),
        "granite-3.0-8b": _granite3(12800, 4096, 0.0078125, 16.0, tie_word_embeddings=True),
        "olmo-2-1b": _olmo2(2048, 8192, 16, 16),
        "olmo-2-7b": _olmo2(4096, 11008, 32, 32),
        "olmo-2-13b": _olmo2(5120, 13824, 40, 40),
        "olmo-3-7b": _olmo3(4096, 11008, 32, (32, 32)),
        "olmo-3-32b": _olmo3(5120, 27648, 64, (40, 8)),
        "phi-3-mini-4k": sizes("phi3", 3072, 8192, 32, (32, 32), sliding_window=2047),
        "phi-4": sizes(
            "phi3",
            5120,
            17920,
            40,
            (40, 10),
            vocab_size=100352,
            max_position_embeddings=16384,
            rope_theta=250000.0,
        ),
        "pythia-160m": _pythia(768, 12, 12),
        "pythia-1.4b": _pythia(2048, 24, 16),
        "pythia-6.9b": _pythia(4096, 32, 32, vocab_size=50432),
        "starcoder2-3b": sizes(
            "starcoder2",
            3072,
            12288,
            30,
            (24, 2),
            max_position_embeddings=16384,
            sliding_window=4096,
            rope_theta=999999.4420358813,
        ),
        "starcoder2-7b": sizes(
            "starcoder2",
            4608,
            18432,
            32,
            (36, 4),
            max_position_embeddings=16384,
            sliding_window=4096,
            rope_theta=1000000.0,
        ),
        "aya-expanse-8b": sizes(
            "cohere", 4096, 14336, 32, (32, 8), rope_theta=10000.0, logit_scale=0.125
        ),
        "command-r": sizes(
            "cohere",
            8192,
            22528,
            40,
            (64, 64),
            rope_theta=8000000.0,
            max_position_embeddings=131072,
        ),
        "command-r7b": sizes(
            "cohere2", 4096, 14336, 32, (32, 8), rope_theta=50000.0, logit_scale=0.25
        ),
        "command-a": sizes(
            "cohere2",
            12288,
            36864,
            64,
            (96, 8),
            rope_theta=50000.0,
            logit_scale=0.25,
            max_position_embeddings=131072,
        ),
        # The text parts.
        "ministral-3-3b": sizes(
            "ministral3", 3072, 9216, 26, (32, 8), head_dim=128, tie_word_embeddings=True
        ),
        "ministral-3-8b": sizes("ministral3", 4096, 14336, 34, (32, 8), head_dim=128),
        "ministral-3-14b": sizes("ministral3", 5120, 16384, 40, (32, 8), head_dim=128),
        "qwen3-30b-a3b": _qwen3_moe(2048, 6144, 48, 32, 768),
        "qwen3-235b-a22b": _qwen3_moe(4096, 12288, 94, 64, 1536),
        "mixtral-8x7b": sizes(
            "mixtral", 4096, 14336, 32, (32, 8), max_position_embeddings=32768, rope_theta=1000000.0
        ),
        "mixtral-8x22b": sizes(
            "mixtral", 6144, 16384, 56, (48, 8), max_position_embeddings=65536, rope_theta=1000000.0
        ),
        "olmoe-1b-7b": sizes("olmoe", 2048, 1024, 16, (16, 16), rope_theta=10000.0),
        "gpt-oss-20b": sizes("gpt_oss", 2880, 2880, 24, (64, 8), num_local_experts=32),
        "gpt-oss-120b": sizes("gpt_oss", 2880, 2880, 36, (64, 8), num_local_experts=128),
        "command-r-plus": sizes(
            "cohere",
            12288,
            33792,
            64,
            (96, 8),
            rope_theta=75000000.0,
            max_position_embeddings=131072,
            logit_scale=0.8333333333333334,
            use_qk_norm=True,
        ),
        "glm-4-9b": sizes("glm4", 4096, 13696, 40, (32, 2), attention_bias=True, **_GLM4),
        "glm-4-32b": sizes("glm4", 6144, 23040, 61, (48, 2), attention_bias=False, **_GLM4),
        "exaone-4.0-1.2b": sizes(
            "exaone4",
            2048,
            4096,
            30,
            (32, 8),
            sliding_window=None,
            layer_types=["full_attention"] * 30,
            max_position_embeddings=65536,
            tie_word_embeddings=True,
            rope_parameters=_EXAONE4_ROPE,
        ),
        "exaone-4.0-32b": sizes(
            "exaone4",
            5120,
            27392,
            64,
            (40, 8),
            max_position_embeddings=131072,
            rope_parameters=_EXAONE4_ROPE,
        ),
        "minitron-4b": sizes("nemotron", 3072, 9216, 32, (24, 8), head_dim=128),
        "minitron-8b": sizes("nemotron", 4096, 16384, 32, (48, 8), head_dim=128),
        "phi-1.5": sizes("phi", 2048, 8192, 24, (32, 32)),
        "phi-2": sizes("phi", 2560, 10240, 32, (32, 32), rope_parameters=_PHI2_ROPE),
        "stablelm-2-1.6b": sizes(
            "stablelm", 2048, 5632, 24, (32, 32), vocab_size=100352, use_qkv_bias=True
        ),
        "stablelm-3b-4e1t": sizes("stablelm", 2560, 6912, 32, (32, 32)),
        "falcon-7b": _falcon(4544, 32, 71),
        "falcon-40b": _falcon(8192, 60, 128, num_kv_heads=8, new_decoder_architecture=True),
        "mimo-7b": sizes(
            "mimo",
            4096,
            11008,
            36,
            (32, 8),
            head_dim=128,
            vocab_size=151680,
            rms_norm_eps=1e-5,
            rope_theta=640000.0,
        ),
        "helium-1-preview-2b": sizes("helium", 2560, 7040, 24, (20, 20), rope_theta=100000.0),
    }
)
