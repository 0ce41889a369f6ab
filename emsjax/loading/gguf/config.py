"""Converts GGUF metadata to a Hugging Face configuration."""

from collections.abc import Collection
from typing import Any

import numpy as np

from emsjax.errors import UserError
from emsjax.loading.gguf.file import GgufFile
from emsjax.loading.hf.config import complete_config
from emsjax.models.rope import SCALINGS

# GGUF stores Llama 3's rotary scaling only as the resulting divisors of the frequencies. All
# Llama 3.x models share these settings. They differ in the factor, which is the largest divisor.
_LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def gguf_config(file: GgufFile, supported: Collection[str]) -> dict[str, Any]:
    """Returns the Hugging Face configuration equivalent to a GGUF file's metadata.

    Args:
      file: the GGUF file.
      supported: model types to accept.

    Raises:
      UserError: metadata is missing, or describes a model that is not supported.
    """
    heads = int(file.need("{arch}.attention.head_count"))
    width = int(file.need("{arch}.embedding_length"))
    shapes = file.shapes()
    return complete_config(
        {
            "model_type": file.architecture,
            "vocab_size": shapes.get("model.embed_tokens.weight", (0,))[0],
            "hidden_size": width,
            "intermediate_size": int(file.need("{arch}.feed_forward_length")),
            "num_hidden_layers": int(file.need("{arch}.block_count")),
            "num_attention_heads": heads,
            "num_key_value_heads": file.kv_heads,
            "head_dim": int(file.get("{arch}.attention.key_length", width // heads)),
            "max_position_embeddings": int(file.need("{arch}.context_length")),
            "rms_norm_eps": _shortest(file.need("{arch}.attention.layer_norm_rms_epsilon")),
            "rope_parameters": _rope(file),
            "tie_word_embeddings": "lm_head.weight" not in shapes,
            "attention_bias": "model.layers.0.self_attn.q_proj.bias" in shapes,
            "bos_token_id": file.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": file.get("tokenizer.ggml.eos_token_id"),
        },
        supported,
        file.name,
    )


def _shortest(value: float) -> float:
    """Returns the shortest decimal number for a float32: 1e-05 for 9.99999974e-06."""
    return float(str(np.float32(value)))


def _rope(file: GgufFile) -> dict[str, Any]:
    """Returns the rotary settings: unscaled, Llama 3's, or the type named in the metadata."""
    theta = _shortest(file.get("{arch}.rope.freq_base", 10000.0))
    kind = file.get("{arch}.rope.scaling.type", "none")
    if file.rope_factors is not None:
        return {"rope_theta": theta} | _llama3(file, theta)
    if kind == "none":
        return {"rope_theta": theta, "rope_type": "default"}
    scaling = {
        "rope_theta": theta,
        "rope_type": kind,
        "factor": _shortest(file.need("{arch}.rope.scaling.factor")),
    }
    original = file.get("{arch}.rope.scaling.original_context_length")
    return scaling | ({"original_max_position_embeddings": int(original)} if original else {})


def _llama3(file: GgufFile, theta: float) -> dict[str, Any]:
    """Returns Llama 3's scaling, after checking that it reproduces the file's divisors."""
    assert file.rope_factors is not None
    factor = float(file.rope_factors.max())
    if np.allclose(llama3_factors(theta, factor, len(file.rope_factors)), file.rope_factors, 1e-3):
        return {"rope_type": "llama3", "factor": factor, **_LLAMA3}
    raise UserError(
        f"{file.name} scales its rotary frequencies differently from every Llama 3 model; "
        "use the model's safetensors copy instead."
    )


def llama3_factors(theta: float, factor: float, half: int) -> np.ndarray:
    """Returns the divisors of the rotary frequencies, float32[half], by Llama 3's rule.

    Args:
      theta: the rotary base.
      factor: divisor of the lowest frequencies.
      half: H / 2, the number of frequencies.
    """
    settings = {"rope_theta": theta, "factor": factor, **_LLAMA3}
    plain, _ = SCALINGS["default"](settings, 2 * half, 0)
    scaled, _ = SCALINGS["llama3"](settings, 2 * half, 0)
    return plain / scaled
