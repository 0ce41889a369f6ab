"""Refuses GGUF metadata that could change the text and that emsjax does not apply."""

from collections.abc import Mapping
from typing import Any

from emsjax.errors import UserError
from emsjax.loading.gguf.architectures import ARCHITECTURES
from emsjax.loading.hf.keys import shown

# The names are those of llama.cpp's `LLM_KV_NAMES` and of gguf-py's `Keys`. Which of them change
# the text follows from llama.cpp's `load_hparams` and the graphs of these architectures.

# Keys that are read, without "general.", "tokenizer." or the architecture before them.
_READ_OF_MODEL = frozenset(
    {
        *("attention.head_count", "attention.head_count_kv", "attention.key_length"),
        *("attention.layer_norm_rms_epsilon", "embedding_length", "feed_forward_length"),
        *("block_count", "context_length", "rope.freq_base", "rope.scaling.type"),
        *("rope.scaling.factor", "rope.scale_linear", "rope.scaling.original_context_length"),
        *("rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"),
        *("rope.dimension_count", "attention.value_length", "rope.scaling.yarn_ext_factor"),
    }
)
_READ_OF_TOKENIZER = frozenset(
    {
        *("ggml.model", "ggml.pre", "ggml.tokens", "ggml.token_type", "ggml.scores"),
        *("ggml.merges", "ggml.bos_token_id", "ggml.eos_token_id", "ggml.eot_token_id"),
        *("ggml.eom_token_id", "ggml.unknown_token_id", "ggml.padding_token_id"),
        *("ggml.add_bos_token", "ggml.add_space_prefix", "chat_template"),
        *("ggml.fim_pad_token_id", "ggml.fim_rep_token_id", "ggml.fim_sep_token_id"),
        "ggml.suppress_tokens",
    }
)
# Keys that llama.cpp does not use either to generate text with these architectures.
_HARMLESS_OF_MODEL = frozenset(
    {
        *("vocab_size", "tensor_data_layout", "pooling_type", "attention.layer_norm_epsilon"),
        *("rope.scaling.finetuned", "classifier.output_labels"),
    }
)
_HARMLESS_OF_TOKENIZER = frozenset(
    {
        *("ggml.token_type_count", "ggml.seperator_token_id", "ggml.separator_token_id"),
        *("ggml.cls_token_id", "ggml.mask_token_id", "ggml.add_sep_token", "chat_templates"),
        *("ggml.fim_pre_token_id", "ggml.fim_suf_token_id", "ggml.fim_mid_token_id"),
        *("ggml.prefix_token_id", "ggml.suffix_token_id", "ggml.middle_token_id"),
        *("ggml.remove_extra_whitespaces", "huggingface.json"),
    }
)
# Values with which a key changes nothing; no value at all, 0, false and empty ones never do for
# the others.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "hidden_activation": ("silu",),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
    "embedding_scale": (0, 1),
    "rope.scaling.attn_factor": (1,),
    "rope.scaling.yarn_attn_factor": (1,),
}
# The recommended sampling of llama.cpp: the generation config's name, or the neutral values.
_SAMPLING: Mapping[str, str | tuple[Any, ...]] = {
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "xtc_probability": (0,),
    "mirostat": (0,),
    "penalty_repeat": (1,),
    "sequence": ("",),
}
# Whether to sample is up to the user; the others only refine those above.
_IDLE = frozenset({"temp", "xtc_threshold", "mirostat_tau", "mirostat_eta", "penalty_last_n"})


def check_metadata(fields: Mapping[str, Any], architecture: str, origin: str) -> None:
    """Checks every key of a GGUF file.

    Keys outside the architecture's, the tokenizer's and the general ones are notes of the tools
    that wrote the file, which llama.cpp does not read either.

    Args:
      fields: the metadata.
      architecture: the file's architecture.
      origin: name of the file in messages.

    Raises:
      UserError: the file is an adapter or a part of a model, or a key could change the text and is
        not read.
    """
    if fields.get("general.type", "model") != "model" or any(
        k.startswith("adapter.") for k in fields
    ):
        raise UserError(
            f"{origin} is no model but {shown(fields.get('general.type', 'an adapter'))}, by its "
            "metadata; use a file that holds the whole model."
        )
    parts = fields.get("split.count")
    if isinstance(parts, int) and parts > 1:
        raise UserError(
            f"{origin} is one of {parts} parts (split.count); join them with llama-gguf-split "
            "--merge."
        )
    for key, value in fields.items():
        if not _known(key, value, architecture):
            raise UserError(
                f"{origin} has {shown(key)[1:-1]}={shown(value)} in its metadata, which emsjax "
                "does not apply and which may change the text; use another GGUF file, or the "
                "model's safetensors copy."
            )


def _known(key: str, value: Any, architecture: str) -> bool:
    """Returns whether a key is read or its value changes nothing."""
    room, _, name = key.partition(".")
    if key.startswith("general.sampling."):
        name = key.removeprefix("general.sampling.")
        use = _SAMPLING.get(name, ())
        return name in _IDLE or isinstance(use, str) or value in use
    if room == architecture:
        known = name in _READ_OF_MODEL or name in _HARMLESS_OF_MODEL
        known |= name in ARCHITECTURES[architecture].keys
        return known or _neutral(value, _NEUTRAL.get(name))
    if room == "tokenizer":
        known = name in _READ_OF_TOKENIZER or name in _HARMLESS_OF_TOKENIZER
        return known or name.startswith("chat_template.") or _neutral(value, None)
    return True


def _neutral(value: Any, values: tuple[Any, ...] | None) -> bool:
    return not value if values is None else value in values


def sampling(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys of a generation config that the recommended sampling stands for."""
    found = {"suppress_tokens": fields.get("tokenizer.ggml.suppress_tokens")}
    found |= {
        use: fields.get(f"general.sampling.{name}")
        for name, use in _SAMPLING.items()
        if isinstance(use, str)
    }
    return {name: value for name, value in found.items() if value is not None}
