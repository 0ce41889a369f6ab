"""The keys of a generation config: which are honoured, harmless, or refused with a value."""

from collections.abc import Mapping
from typing import Any

from emsjax.errors import UserError

# Become defaults of sampling parameters, see `emsjax.requests.configured`.
HONOURED = frozenset(
    {
        *("top_k", "top_p", "min_p", "repetition_penalty"),
        *("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "no_repeat_ngram_size"),
        *("min_new_tokens", "min_length", "forced_bos_token_id", "forced_eos_token_id"),
    }
)
# Keys that are read elsewhere, that are up to the user (whether to sample, how much text, how many
# outputs), that matter only to beam search, or that change speed and output values but no text.
HARMLESS = frozenset(
    {
        *("eos_token_id", "bos_token_id", "pad_token_id", "decoder_start_token_id"),
        *("do_sample", "temperature", "max_length", "max_new_tokens", "num_return_sequences"),
        *("early_stopping", "length_penalty", "renormalize_logits", "remove_invalid_values"),
        *("use_cache", "cache_config", "max_cache_len", "use_mtp"),
        *("output_attentions", "output_hidden_states", "output_scores", "output_logits"),
        *("return_dict_in_generate", "is_assistant", "num_assistant_tokens", "low_memory"),
        *("num_assistant_tokens_schedule", "assistant_confidence_threshold"),
        *("prompt_lookup_num_tokens", "max_matching_ngram_size", "assistant_early_exit"),
        *("assistant_lookbehind", "target_lookbehind", "speculation_type", "compile_config"),
        *("disable_compile", "continuous_batching_config", "prefill_chunk_size"),
        *("transformers_version", "_from_model_config", "_commit_hash"),
        *("trust_remote_code", "chat_format", "max_window_size"),
    }
)
# The caches of `transformers` that do not round what they hold, unlike "quantized".
_EXACT_CACHES = (
    *("static", "offloaded_static", "dynamic", "dynamic_full", "offloaded", "paged"),
    *("sliding_window", "hybrid", "hybrid_chunked", "offloaded_hybrid", "offloaded_hybrid_chunked"),
)
# The values with which the other keys of `transformers` change nothing; None never does.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "cache_implementation": _EXACT_CACHES,
    "max_time": (),
    "stop_strings": ([], ""),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "top_h": (1,),
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "encoder_repetition_penalty": (1,),
    "encoder_no_repeat_ngram_size": (0,),
    "forced_decoder_ids": ([],),
    "exponential_decay_length_penalty": (),
    "sequence_bias": ({}, []),
    "token_healing": (False,),
    "guidance_scale": (1,),
    "watermarking_config": (),
    "assistant_ensemble_weight": (0,),
    "penalty_alpha": (0,),
    "dola_layers": (),
    "diversity_penalty": (0,),
    "constraints": ([],),
    "force_words_ids": ([],),
}
# What to pass instead of a key that has a counterpart, if the user wants its effect.
_INSTEAD = {
    "stop_strings": "pass stop, which leaves the string out of the text",
    "sequence_bias": "pass logit_bias for single tokens",
    "max_time": "pass max_tokens",
}
GENERATION_KEYS = HONOURED | HARMLESS | NEUTRAL.keys()


def check_generation(config: Mapping[str, Any], origin: str) -> None:
    """Refuses keys of a generation config that could change the text and are not honoured.

    Args:
      config: the contents of `generation_config.json`.
      origin: name of the file in messages.

    Raises:
      UserError: a key has a value that changes the text, or is not known at all.
    """
    for key, value in config.items():
        if key in HONOURED or key in HARMLESS or value is None:
            continue
        if value in NEUTRAL.get(key, ("", [], {}, False)):
            continue
        instead = f", or {_INSTEAD[key]}" if key in _INSTEAD else ""
        raise UserError(
            f"{origin} sets {key}, which emsjax does not apply and which may change the text; "
            f"remove it from generation_config.json{instead}."
        )
