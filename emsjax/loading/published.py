"""Published configurations of well-known models, as in their `config.json`.

Only the settings that affect computation are listed. `transformers` fills in the rest, as it does
for files.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from emsjax.loading.published_since import PUBLISHED_SINCE, sizes

Config = dict[str, Any]


def _opt(width: int, layers: int, heads: int, **different: Any) -> Config:
    return {
        "model_type": "opt",
        "vocab_size": 50272,
        "hidden_size": width,
        "ffn_dim": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 2048,
        "word_embed_proj_dim": width,
        "do_layer_norm_before": True,
        "activation_function": "relu",
        "eos_token_id": 2,
    } | different


def _gpt2(width: int, layers: int, heads: int) -> Config:
    return {
        "model_type": "gpt2",
        "vocab_size": 50257,
        "n_embd": width,
        "n_layer": layers,
        "n_head": heads,
        "n_positions": 1024,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "eos_token_id": 50256,
    }


def _gated(
    model_type: str, width: int, inner: int, layers: int, heads: tuple[int, int], **more: Any
) -> Config:
    """Returns the settings Llama-like models share; `heads` is (query heads, key/value heads)."""
    shared: Config = {"hidden_act": "silu", "tie_word_embeddings": False}
    return sizes(model_type, width, inner, layers, heads, **shared | more)


def _llama2(width: int, inner: int, layers: int, heads: int) -> Config:
    small = {"vocab_size": 32000, "max_position_embeddings": 4096, "rope_theta": 10000.0}
    return _gated(
        "llama", width, inner, layers, (heads, heads), rms_norm_eps=1e-5, eos_token_id=2, **small
    )


def _llama3(width: int, inner: int, layers: int, heads: int, **more: Any) -> Config:
    shared = {"vocab_size": 128256, "rope_theta": 500000.0, "max_position_embeddings": 8192}
    shared |= {"rms_norm_eps": 1e-5, "eos_token_id": 128001}
    return _gated("llama", width, inner, layers, (heads, 8), **shared | more)


def _long(factor: float) -> Config:
    """Returns the long-context settings of Llama 3.1 and 3.2."""
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    return {"max_position_embeddings": 131072, "rope_scaling": scaling}


def _smollm2(
    width: int, inner: int, layers: int, heads: tuple[int, int], theta: float = 100000.0
) -> Config:
    settings = {"vocab_size": 49152, "max_position_embeddings": 8192, "rope_theta": theta}
    settings |= {"rms_norm_eps": 1e-5, "eos_token_id": 0, "tie_word_embeddings": True}
    return _gated("llama", width, inner, layers, heads, **settings)


def _qwen25(width: int, inner: int, layers: int, heads: tuple[int, int], **more: Any) -> Config:
    settings = {"vocab_size": 151936, "max_position_embeddings": 32768, "rope_theta": 1000000.0}
    settings |= {"rms_norm_eps": 1e-6, "eos_token_id": 151643}
    return _gated("qwen2", width, inner, layers, heads, **settings | more)


def _qwen3(width: int, inner: int, layers: int, heads: int, tied: bool) -> Config:
    settings = {"vocab_size": 151936, "max_position_embeddings": 40960, "rope_theta": 1000000.0}
    settings |= {"rms_norm_eps": 1e-6, "eos_token_id": 151645, "head_dim": 128}
    return _gated("qwen3", width, inner, layers, (heads, 8), tie_word_embeddings=tied, **settings)


def _mistral(width: int = 4096, inner: int = 14336, layers: int = 32, **more: Any) -> Config:
    settings = {"max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "eos_token_id": 2}
    return _gated("mistral", width, inner, layers, (32, 8), head_dim=128, **settings | more)


_TIED = {"tie_word_embeddings": True}
_NO_WINDOW: Config = {"sliding_window": None, "rope_theta": 1000000.0}

PUBLISHED: Mapping[str, Config] = MappingProxyType(
    {
        "opt-125m": _opt(768, 12, 12),
        # Unlike the other sizes: a narrower embedding, and norms after the sublayers.
        "opt-350m": _opt(1024, 24, 16, word_embed_proj_dim=512, do_layer_norm_before=False),
        "opt-1.3b": _opt(2048, 24, 32),
        "opt-2.7b": _opt(2560, 32, 32),
        "opt-6.7b": _opt(4096, 32, 32),
        "opt-13b": _opt(5120, 40, 40),
        "opt-30b": _opt(7168, 48, 56),
        "gpt2": _gpt2(768, 12, 12),
        "gpt2-medium": _gpt2(1024, 24, 16),
        "gpt2-large": _gpt2(1280, 36, 20),
        "gpt2-xl": _gpt2(1600, 48, 25),
        "smollm2-135m": _smollm2(576, 1536, 30, (9, 3)),
        "smollm2-360m": _smollm2(960, 2560, 32, (15, 5)),
        "smollm2-1.7b": _smollm2(2048, 8192, 24, (32, 32), theta=130000.0),
        "llama-2-7b": _llama2(4096, 11008, 32, 32),
        "llama-2-13b": _llama2(5120, 13824, 40, 40),
        "llama-3-8b": _llama3(4096, 14336, 32, 32),
        "llama-3-70b": _llama3(8192, 28672, 80, 64),
        "llama-3.1-8b": _llama3(4096, 14336, 32, 32, **_long(8.0)),
        "llama-3.2-1b": _llama3(2048, 8192, 16, 32, head_dim=64, **_TIED, **_long(32.0)),
        "llama-3.2-3b": _llama3(3072, 8192, 28, 24, head_dim=128, **_TIED, **_long(32.0)),
        # Version 0.1; 0.3 has a larger vocabulary and no sliding window.
        "mistral-7b": _mistral(vocab_size=32000, sliding_window=4096, rope_theta=10000.0),
        "mistral-7b-v0.3": _mistral(vocab_size=32768, **_NO_WINDOW),
        "mistral-nemo-12b": _mistral(
            5120, layers=40, vocab_size=131072, max_position_embeddings=131072, **_NO_WINDOW
        ),
        # Version 3 of Mistral Small.
        "mistral-small-24b": _mistral(
            5120, 32768, 40, vocab_size=131072, **_NO_WINDOW | {"rope_theta": 100000000.0}
        ),
        "qwen2.5-0.5b": _qwen25(896, 4864, 24, (14, 2), **_TIED),
        "qwen2.5-1.5b": _qwen25(1536, 8960, 28, (12, 2), **_TIED),
        "qwen2.5-3b": _qwen25(2048, 11008, 36, (16, 2), **_TIED),
        "qwen2.5-7b": _qwen25(3584, 18944, 28, (28, 4), vocab_size=152064),
        "qwen2.5-14b": _qwen25(5120, 13824, 48, (40, 8), vocab_size=152064),
        "qwen2.5-32b": _qwen25(5120, 27648, 64, (40, 8), vocab_size=152064),
        "qwen3-0.6b": _qwen3(1024, 3072, 28, 16, tied=True),
        "qwen3-1.7b": _qwen3(2048, 6144, 28, 16, tied=True),
        "qwen3-4b": _qwen3(2560, 9728, 36, 32, tied=True),
        "qwen3-8b": _qwen3(4096, 12288, 36, 32, tied=False),
        "qwen3-14b": _qwen3(5120, 17408, 40, 40, tied=False),
        "qwen3-32b": _qwen3(5120, 25600, 64, 64, tied=False),
        **PUBLISHED_SINCE,
    }
)
