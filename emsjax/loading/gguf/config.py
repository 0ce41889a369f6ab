"""Converts GGUF metadata to a Hugging Face configuration."""

import math
from collections.abc import Collection
from typing import Any

import numpy as np

from emsjax.errors import UserError
from emsjax.loading.gguf.file import GgufFile
from emsjax.loading.gguf.metadata import check_metadata, sampling
from emsjax.loading.gguf.own_settings import own_settings
from emsjax.loading.hf.config import complete_config
from emsjax.loading.hf.keys import shown
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
    check_metadata(file.metadata, file.architecture, file.name)
    heads = file.whole("{arch}.attention.head_count")
    width = file.whole("{arch}.embedding_length")
    head_dim = file.whole("{arch}.attention.key_length", width // heads)
    _check_heads(file, head_dim)
    shapes = file.shapes()
    embedding = shapes.get("model.embed_tokens.weight", ())
    if len(embedding) != 2:
        raise UserError(
            f"{file.name} lacks the token embedding (token_embd.weight); use another GGUF file."
        )
    settings = {
        "model_type": file.layout.model_type,
        "vocab_size": embedding[0],
        "hidden_size": width,
        "intermediate_size": file.whole("{arch}.feed_forward_length"),
        "num_hidden_layers": file.whole("{arch}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": file.kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": file.whole("{arch}.context_length"),
        "rms_norm_eps": file.number("{arch}.attention.layer_norm_rms_epsilon"),
        "rope_parameters": _rope(file, head_dim),
        "tie_word_embeddings": "lm_head.weight" not in shapes,
        "attention_bias": "model.layers.0.self_attn.q_proj.bias" in shapes,
        "bos_token_id": file.token("bos"),
        "eos_token_id": _ends(file),
        **sampling(file.metadata),
    }
    return complete_config(settings | own_settings(file, settings), supported, file.name)


def _ends(file: GgufFile) -> int | list[int] | None:
    """Returns the tokens that end a text, as llama.cpp does: of the text, a turn or a message.

    The last three separate documents for models of code.
    """
    names = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")
    found = [file.token(name) for name in names]
    ids = list(dict.fromkeys(token for token in found if token is not None))
    return ids if len(ids) > 1 else ids[0] if ids else None


def _check_heads(file: GgufFile, head_dim: int) -> None:
    """Checks that keys are as wide as values, and all of each head is turned if it must be."""
    keys = ["{arch}.attention.value_length", "{arch}.rope.dimension_count"]
    for key in keys[: 1 if file.layout.turns_part else 2]:
        if file.get(key) is not None and file.whole(key) != head_dim:
            raise UserError(
                f"{file.name} has {key.replace('{arch}', file.architecture)}={file.whole(key)}, "
                f"but only the head's width, {head_dim}, is supported; use another model."
            )


def _rope(file: GgufFile, head_dim: int) -> dict[str, Any]:
    """Returns the rotary settings, read as llama.cpp reads them.

    A factor without a type is linear, and the older `rope.scale_linear` is such a factor.
    """
    theta = file.number("{arch}.rope.freq_base", 10000.0)
    factor = file.number("{arch}.rope.scaling.factor", file.number("{arch}.rope.scale_linear", 1.0))
    kind = str(file.get("{arch}.rope.scaling.type", "none" if factor == 1 else "linear"))
    settings: dict[str, Any] = {"rope_theta": theta, "rope_type": kind}
    ext_factor = file.get("{arch}.rope.scaling.yarn_ext_factor", float(kind == "yarn"))
    if ext_factor != (kind == "yarn"):
        raise UserError(
            f"{file.name} has yarn_ext_factor={shown(ext_factor)} with rope scaling {shown(kind)}, "
            "which is not supported; use the model's safetensors copy instead."
        )
    if file.factors() is not None:
        if kind != "none" and factor != 1:
            raise UserError(
                f"{file.name} scales its rotary frequencies twice, by rope_freqs.weight and by "
                f"{kind[:40]!r}; use the model's safetensors copy instead."
            )
        return {"rope_theta": theta} | _llama3(file, theta, head_dim)
    if kind == "none":
        return settings | {"rope_type": "default"}
    settings["factor"] = factor
    original = file.get("{arch}.rope.scaling.original_context_length")
    if kind == "yarn":
        settings["beta_fast"] = file.number("{arch}.rope.scaling.yarn_beta_fast", 32.0)
        settings["beta_slow"] = file.number("{arch}.rope.scaling.yarn_beta_slow", 1.0)
        if original:
            settings["original_max_position_embeddings"] = file.whole(
                "{arch}.rope.scaling.original_context_length"
            )
    return settings


def _llama3(file: GgufFile, theta: float, head_dim: int) -> dict[str, Any]:
    """Returns Llama 3's scaling, after checking that it reproduces the file's divisors."""
    factors = file.factors()
    assert factors is not None
    factor = float(factors.max(initial=1))
    same = factors.shape == (head_dim // 2,) and 0 < factor < math.inf and theta > 0
    if same and np.allclose(llama3_factors(theta, factor, head_dim // 2), factors, 1e-3):
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
