"""vLLM's names in sampling parameters, calls and prompts that emsjax does not have."""

from emsjax.requests.vllm_names import foreign_names

SAMPLING_PARAMS = (
    foreign_names("set n", best_of=(None, 1)),
    foreign_names(
        "there is no counterpart: emsjax has no beam search",
        use_beam_search=False,
        length_penalty=1,
        early_stopping=False,
    ),
    foreign_names(
        "set logprobs for the log-probabilities of the output",
        prompt_logprob_token_ids=None,
        prompt_logprob_start=None,
        logprob_token_ids=None,
        flat_logprobs=False,
    ),
    foreign_names(
        "there is no counterpart: spaces are what the tokenizer writes",
        spaces_between_special_tokens=True,
    ),
    foreign_names("shorten the prompt", truncate_prompt_tokens=None),
    foreign_names("set structured_outputs, its new name", guided_decoding=None),
    foreign_names(
        "there is no counterpart: set logit_bias, allowed_token_ids, bad_words or "
        "structured_outputs to restrict the tokens",
        logits_processors=None,
        thinking_token_budget=None,
        repetition_detection=None,
    ),
    foreign_names("use llm.stream", output_kind=(), stream_interval=None),
    foreign_names(
        "there is no counterpart",
        extra_args=None,
        skip_clone=(True, False),
        skip_reading_prefix_cache=(None, True, False),
        routed_experts_prompt_start=0,
        trace_decode_token_ids=None,
    ),
)

STRUCTURED_OUTPUTS = (
    foreign_names("set json, regex or choice", grammar=None, structural_tag=None),
    foreign_names(
        "there is no counterpart: there is one backend",
        disable_fallback=(None, True, False),
        disable_additional_properties=(None, True, False),
    ),
    foreign_names("set whitespace_pattern", disable_any_whitespace=(None, False)),
)

_CALLS = (
    foreign_names("merge the adapter into the weights of the model", lora_request=None),
    foreign_names("order the prompts: they take slots in their order", priority=None),
    foreign_names("give prompts as token ids", tokenization_kwargs=(None, {})),
)
GENERATE = (
    *_CALLS,
    foreign_names("give the ids as prompts", prompt_token_ids=None),
    foreign_names(
        "there is no counterpart", prompt_adapter_request=None, guided_options_request=None
    ),
)
CHAT = (
    *_CALLS,
    foreign_names(
        "there is no counterpart: a template gets text, parts of text joined by line breaks",
        chat_template_content_format=("auto", "string"),
    ),
    foreign_names("there is no counterpart: models take text only", mm_processor_kwargs=(None, {})),
)

PROMPT = (
    foreign_names(
        "there is no counterpart: models take text only",
        multi_modal_data=(None, {}),
        multi_modal_uuids=(None, {}),
        mm_processor_kwargs=(None, {}),
        prompt_embeds=None,
        encoder_prompt=None,
        decoder_prompt=None,
    ),
    foreign_names(
        "there is no counterpart: all prompts share what the cache holds",
        cache_salt=None,
    ),
)
