"""The names of vLLM that emsjax does not have: which values are harmless, and what to use instead.

`docs/python.md` shows these tables, and a test holds the two together.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import wraps
from typing import Any, TypeVar

from emsjax.errors import UserError, short

_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Foreign:
    """Some names of vLLM that emsjax does not have.

    Attributes:
      instead: the counterpart in emsjax, or that there is none; it ends a message.
      names: each name with the values that are accepted, because emsjax does just that.
    """

    instead: str
    names: Mapping[str, tuple[Any, ...]]


def _foreign(instead: str, **names: Any) -> Foreign:
    """Makes one entry; a value that is not a tuple is the only one accepted."""
    return Foreign(instead, {n: v if isinstance(v, tuple) else (v,) for n, v in names.items()})


LLM_OPTIONS = (
    _foreign(
        "there is no counterpart: devices share a model by tensor_parallel_size alone",
        pipeline_parallel_size=1,
        data_parallel_size=1,
        decode_context_parallel_size=1,
        prefill_context_parallel_size=1,
        data_parallel_backend=(),
        data_parallel_rank=None,
        data_parallel_start_rank=None,
        data_parallel_size_local=None,
        data_parallel_address=None,
        data_parallel_rpc_port=None,
        data_parallel_hybrid_lb=False,
        master_addr=(),
        master_port=(),
        nnodes=1,
        node_rank=0,
        dcp_kv_cache_interleave_size=(),
        all2all_backend=None,
        disable_nccl_for_dp_synchronization=(None, True, False),
        dbo_decode_token_threshold=(),
        dbo_prefill_token_threshold=(),
        eplb_config=None,
        expert_placement_strategy=(),
        num_redundant_experts=0,
        eplb_window_size=(),
        eplb_step_interval=(),
        eplb_log_balancedness=(),
        enable_expert_parallel=False,
        enable_eplb=False,
        enable_dbo=False,
        distributed_executor_backend=(None, "uni"),
        max_parallel_loading_workers=None,
        ray_workers_use_nsight=False,
        disable_custom_all_reduce=(True, False),
        worker_cls="auto",
        worker_extension_cls="",
    ),
    _foreign("set JAX_PLATFORMS to choose the device", device=(None, "auto")),
    _foreign(
        "set quantize to quantise on load; how a quantised checkpoint named by model is to be read "
        "is known from its configuration",
        quantization=None,
        quantization_param_path=None,
    ),
    _foreign(
        "set max_batch_size and max_model_len, which decide how much memory is reserved",
        gpu_memory_utilization=(),
        kv_cache_memory_bytes=None,
        num_gpu_blocks_override=None,
        swap_space=0,
        cpu_offload_gb=0,
        block_size=None,
        enable_sleep_mode=False,
    ),
    _foreign(
        "set kv_dtype for an int8 cache",
        kv_cache_dtype="auto",
    ),
    _foreign(
        "there is no counterpart: the cache has the dtype of the model, or scales of its own",
        calculate_kv_scales=False,
        mamba_cache_dtype="auto",
        mamba_ssm_cache_dtype="auto",
        mamba_block_size=None,
        disable_hybrid_kv_cache_manager=(None, True, False),
        kv_sharing_fast_prefill=False,
    ),
    _foreign(
        "there is no counterpart: XLA always compiles the model",
        enforce_eager=False,
        compilation_config=None,
        max_seq_len_to_capture=(),
        attention_config=None,
        attention_backend=None,
    ),
    _foreign(
        "there is no counterpart: prompts take slots in their order, and the engine sizes its "
        "steps itself",
        max_num_batched_tokens=None,
        enable_chunked_prefill=(None, True),
        max_num_partial_prefills=1,
        max_long_partial_prefills=1,
        long_prefill_token_threshold=0,
        scheduling_policy="fcfs",
        scheduler_cls=(),
        scheduler_delay_factor=0,
        num_scheduler_steps=1,
        num_lookahead_slots=0,
        preemption_mode=None,
        async_scheduling=(None, True, False),
        external_parameters=None,
        disable_async_output_proc=(True, False),
    ),
    _foreign(
        "there is no counterpart: what a prompt shares with a text in the cache is always copied",
        prefix_caching_hash_algo=(),
        disable_cascade_attn=(True, False),
    ),
    _foreign("there is no counterpart: emsjax runs no code of a model", trust_remote_code=False),
    _foreign(
        "there is no counterpart: emsjax generates text only",
        task=("auto", "generate"),
        runner=("auto", "generate"),
        convert=("auto", "none"),
        pooler_config=None,
        override_pooler_config=None,
    ),
    _foreign(
        "there is no counterpart: models take text only",
        limit_mm_per_prompt=(None, {}),
        mm_processor_kwargs=(None, {}),
        mm_processor_cache_gb=(),
        media_io_kwargs=(None, {}),
        allowed_local_media_path="",
        allowed_media_domains=None,
        enable_prompt_embeds=False,
        enable_mm_embeds=False,
        disable_mm_preprocessor_cache=(True, False),
        disable_chunked_mm_input=(True, False),
        mm_processor_cache_type=(),
        mm_shm_cache_max_object_size_mb=(),
        mm_encoder_tp_mode=(),
        mm_encoder_attn_backend=None,
        enable_multimodal_encoder_data_parallel=False,
        skip_mm_profiling=(True, False),
        video_pruning_rate=(None, 0),
        io_processor_plugin=None,
        interleave_mm_strings=False,
    ),
    _foreign(
        "download the revision, and name its directory as model or tokenizer",
        revision=None,
        code_revision=None,
        tokenizer_revision=None,
    ),
    _foreign("set HF_HOME to the folder for downloads", download_dir=None),
    _foreign("set HF_TOKEN to the token", hf_token=None),
    _foreign(
        "there is no counterpart: the format of the files is recognised",
        load_format="auto",
        config_format=("auto", "hf"),
        tokenizer_mode=("auto", "hf"),
        model_impl="auto",
        model_loader_extra_config=(None, {}),
        ignore_patterns=None,
        use_tqdm_on_load=(True, False),
        safetensors_load_strategy=(),
        pt_load_map_location=(),
    ),
    _foreign(
        "change config.json in the directory of the model",
        hf_overrides=(None, {}),
        hf_config_path=None,
        rope_scaling=(None, {}),
        rope_theta=None,
        disable_sliding_window=False,
        override_attention_dtype=None,
    ),
    _foreign(
        "give prompts as token ids and set detokenize=False in SamplingParams",
        skip_tokenizer_init=False,
    ),
    _foreign(
        "set top_k, top_p, min_p and repetition_penalty in SamplingParams, which otherwise come "
        "from the model's generation config",
        generation_config="auto",
        override_generation_config=(None, {}),
    ),
    _foreign("set logprobs in SamplingParams, to at most 20", max_logprobs=20),
    _foreign(
        "there is no counterpart: log-probabilities are the model's own",
        logprobs_mode="raw_logprobs",
    ),
    _foreign(
        "merge the adapter into the weights of the model",
        enable_lora=False,
        max_loras=1,
        max_lora_rank=16,
        max_cpu_loras=None,
        lora_dtype="auto",
        fully_sharded_loras=False,
        default_mm_loras=None,
        lora_extra_vocab_size=(),
        enable_prompt_adapter=False,
    ),
    _foreign(
        "set structured_outputs in SamplingParams, for which there is one backend",
        structured_outputs_config=None,
        guided_decoding_backend=(None, "auto"),
        guided_decoding_disable_fallback=(None, True, False),
        guided_decoding_disable_any_whitespace=(None, False),
        guided_decoding_disable_additional_properties=(None, False),
    ),
    _foreign(
        "there is no counterpart: set logit_bias, allowed_token_ids, bad_words or "
        "structured_outputs in SamplingParams to restrict the tokens",
        logits_processors=None,
        logits_processor_pattern=None,
        reasoning_parser=(None, ""),
    ),
    _foreign(
        "read the metrics of each output",
        disable_log_stats=True,
        disable_log_requests=True,
        enable_log_requests=False,
        otlp_traces_endpoint=None,
        collect_detailed_traces=None,
        show_hidden_metrics_for_version=None,
        profiler_config=None,
        aggregate_engine_logging=(True, False),
    ),
    _foreign(
        "there is no counterpart",
        served_model_name=None,
        kv_transfer_config=None,
        kv_events_config=None,
        additional_config=(None, {}),
        enable_return_routed_experts=False,
    ),
    _foreign("set draft_model", speculative_model=None),
    _foreign("set draft_length", num_speculative_tokens=None),
    _foreign("set max_ngram", ngram_prompt_lookup_max=None),
    _foreign("set min_ngram", ngram_prompt_lookup_min=None),
    _foreign(
        "set planner, which verifies only the drafts that pay off",
        speculative_disable_by_batch_size=None,
    ),
)

SAMPLING_PARAMS = (
    _foreign("set n", best_of=(None, 1)),
    _foreign(
        "there is no counterpart: emsjax has no beam search",
        use_beam_search=False,
        length_penalty=1,
        early_stopping=False,
    ),
    _foreign(
        "set logprobs for the log-probabilities of the output",
        prompt_logprob_token_ids=None,
        prompt_logprob_start=None,
        logprob_token_ids=None,
        flat_logprobs=False,
    ),
    _foreign(
        "there is no counterpart: spaces are what the tokenizer writes",
        spaces_between_special_tokens=True,
    ),
    _foreign("shorten the prompt", truncate_prompt_tokens=None),
    _foreign("set structured_outputs, its new name", guided_decoding=None),
    _foreign(
        "there is no counterpart: set logit_bias, allowed_token_ids, bad_words or "
        "structured_outputs to restrict the tokens",
        logits_processors=None,
        thinking_token_budget=None,
        repetition_detection=None,
    ),
    _foreign("use llm.stream", output_kind=(), stream_interval=None),
    _foreign(
        "there is no counterpart",
        extra_args=None,
        skip_clone=(True, False),
        skip_reading_prefix_cache=(None, True, False),
        routed_experts_prompt_start=0,
        trace_decode_token_ids=None,
    ),
)

STRUCTURED_OUTPUTS = (
    _foreign("set json, regex or choice", grammar=None, structural_tag=None),
    _foreign(
        "there is no counterpart: there is one backend",
        disable_fallback=(None, True, False),
        disable_additional_properties=(None, True, False),
    ),
    _foreign("set whitespace_pattern", disable_any_whitespace=(None, False)),
)

_CALLS = (
    _foreign("merge the adapter into the weights of the model", lora_request=None),
    _foreign("order the prompts: they take slots in their order", priority=None),
    _foreign("give prompts as token ids", tokenization_kwargs=(None, {})),
)
GENERATE = (
    *_CALLS,
    _foreign("give the ids as prompts", prompt_token_ids=None),
    _foreign("there is no counterpart", prompt_adapter_request=None, guided_options_request=None),
)
CHAT = (
    *_CALLS,
    _foreign(
        "there is no counterpart: a template gets text, parts of text joined by line breaks",
        chat_template_content_format=("auto", "string"),
    ),
    _foreign("there is no counterpart: models take text only", mm_processor_kwargs=(None, {})),
)

PROMPT = (
    _foreign(
        "there is no counterpart: models take text only",
        multi_modal_data=(None, {}),
        multi_modal_uuids=(None, {}),
        mm_processor_kwargs=(None, {}),
        prompt_embeds=None,
        encoder_prompt=None,
        decoder_prompt=None,
    ),
    _foreign(
        "there is no counterpart: all prompts share what the cache holds",
        cache_salt=None,
    ),
)

SPECULATIVE_CONFIG = (
    _foreign(
        "there is no counterpart: every device has all of a draft model",
        draft_tensor_parallel_size=(None, 1),
    ),
    _foreign(
        "download the revision, and name its directory as model",
        revision=None,
        code_revision=None,
    ),
    _foreign(
        "set draft_quantize of LLM to quantise on load; how a quantised draft is to be read is "
        "known from its configuration",
        quantization=None,
    ),
    _foreign("there is no counterpart: a draft reads as far as the model", max_model_len=None),
    _foreign(
        "set planner of LLM, which verifies only the drafts that pay off",
        disable_by_batch_size=None,
        num_speculative_tokens_per_batch_size=None,
        enable_adaptive_verification=False,
    ),
    _foreign(
        "there is no counterpart: a draft token is accepted if the model chooses it too",
        rejection_sample_method="standard",
        draft_sample_method="greedy",
        acceptance_method=(),
    ),
    _foreign(
        "there is no counterpart",
        parallel_drafting=False,
        disable_padded_drafter_batch=(True, False),
        use_heterogeneous_vocab=False,
        enforce_eager=(None, False),
        disable_logprobs=(None, False),
    ),
)

LLM_ATTRIBUTES = (
    _foreign("there is no counterpart: emsjax has no beam search", beam_search=()),
    _foreign(
        "there is no counterpart: emsjax generates text only",
        encode=(),
        embed=(),
        classify=(),
        reward=(),
        score=(),
    ),
    _foreign("use SamplingParams()", get_default_sampling_params=()),
    _foreign("use LLM(tokenizer=...)", set_tokenizer=()),
    _foreign("use llm.engine", llm_engine=()),
    _foreign("read the metrics of each output", get_metrics=()),
    _foreign("use jax.profiler", start_profile=(), stop_profile=()),
    _foreign("use llm.target", apply_model=(), collective_rpc=()),
    _foreign(
        "there is no counterpart",
        sleep=(),
        wake_up=(),
        reset_prefix_cache=(),
        reset_mm_cache=(),
        get_world_size=(),
    ),
)

# The methods of `speculative_config` that emsjax has under another name.
_DRAFTERS = {
    **dict.fromkeys(("ngram", "ngram_gpu"), "prompt-lookup"),
    **dict.fromkeys(("draft_model", "eagle", "eagle3", "dflash", "medusa"), "draft-model"),
}
_RENAMED = {
    "model": "draft_model",
    "num_speculative_tokens": "draft_length",
    "prompt_lookup_max": "max_ngram",
    "prompt_lookup_min": "min_ngram",
}


def refuse(name: str, value: Any, foreign: Sequence[Foreign]) -> bool:
    """Returns whether `name` is in the table with a value that is accepted.

    Args:
      name: the name.
      value: its value.
      foreign: the table.

    Returns:
      True if the value may be dropped, False if the name is not in the table.

    Raises:
      UserError: the value is not accepted; the message says what to use instead.
    """
    for entry in foreign:
        if name in entry.names:
            if any(_same(value, harmless) for harmless in entry.names[name]):
                return True
            raise UserError(f"{name}={short(value)} is vLLM's and not emsjax's; {entry.instead}")
    return False


def refuse_attribute(name: str) -> None:
    """Refuses an attribute that vLLM's `LLM` has.

    Raises:
      UserError: the name is one of those; the message says what to use instead.
    """
    for entry in LLM_ATTRIBUTES:
        if name in entry.names:
            raise UserError(f"LLM.{name} is vLLM's and not emsjax's; {entry.instead}")


def _same(value: Any, harmless: Any) -> bool:
    # True is not 1 here, and arrays have no truth value.
    kinds = {type(value), type(harmless)}
    return (len(kinds) == 1 or kinds == {int, float}) and bool(value == harmless)


def takes_vllm_names(what: str, foreign: Sequence[Foreign]) -> Callable[[_Function], _Function]:
    """Lets a function accept keywords of vLLM whose values change nothing.

    All other keywords that the function does not have raise a `UserError` that names the
    counterpart, or the closest keyword that it does have.

    Args:
      what: what a keyword is called in messages, such as "an option of LLM".
      foreign: the table of vLLM's names.
    """

    def decorate(function: _Function) -> _Function:
        own = inspect.signature(function).parameters

        @wraps(function)
        def with_vllm_names(*args: Any, **given: Any) -> Any:
            for name in [name for name in given if name not in own]:
                if not refuse(name, given.pop(name), foreign):
                    raise UserError(unknown_name(name, what, own))
            return function(*args, **given)

        return with_vllm_names  # type: ignore[return-value]

    return decorate


def unknown_name(name: str, what: str, known: Iterable[str]) -> str:
    """Says that a name is unknown, and which one is like it."""
    names = [each for each in known if each != "self"]
    close = get_close_matches(name, names, n=1)
    advice = f"did you mean {close[0]}?" if close else f"use one of {', '.join(names)}"
    return f"{short(name)} is not {what}; {advice}"


def batch_size(max_batch_size: int | None, max_num_seqs: int | None, default: int) -> Any:
    """Returns the batch size, given under either of its names.

    Raises:
      UserError: the two names have different values.
    """
    if max_num_seqs is None:
        return default if max_batch_size is None else max_batch_size
    if max_batch_size is not None and max_batch_size != max_num_seqs:
        raise UserError(
            f"max_num_seqs={short(max_num_seqs)} is vLLM's name of max_batch_size, which is "
            f"{short(max_batch_size)}; give one of them"
        )
    return max_num_seqs


def dtype_name(dtype: Any) -> str:
    """Returns the name of a dtype, given as vLLM takes it: "half", "float" or one of PyTorch's."""
    name = dtype if isinstance(dtype, str) else getattr(dtype, "__name__", None) or short(dtype)
    name = name.removeprefix("torch.")
    return {"half": "float16", "float": "float32"}.get(name, name)


def drafting_options(given: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """Adds what a `speculative_config` says to the options of drafting.

    Args:
      given: the options of `LLM` by name; None for those that were left out.
      config: vLLM's `speculative_config`; None adds nothing.

    Raises:
      UserError: the configuration is not one that emsjax can follow, or it comes together with
        options that say the same.
    """
    if config is None:
        return dict(given)
    same = {"drafter", *_RENAMED.values()}
    both = [name for name, value in given.items() if value is not None and name in same]
    if both:
        raise UserError(
            f"speculative_config is vLLM's form of {', '.join(both)}; give either, not both"
        )
    if not isinstance(config, Mapping):
        raise UserError(
            f"speculative_config={short(config)} must be a dictionary such as "
            "{'method': 'ngram', 'num_speculative_tokens': 7}"
        )
    known = ("method", *_RENAMED)
    wanted = {}
    for name, value in config.items():
        if name in known:
            wanted[name] = value
        elif not refuse(name, value, SPECULATIVE_CONFIG):
            raise UserError(unknown_name(str(name), "a key of speculative_config", known))
    drafter = _drafter(wanted.pop("method", None), wanted.get("model"))
    if drafter == "prompt-lookup":  # vLLM's old configurations name the model "[ngram]"
        wanted.pop("model", None)
    options = {_RENAMED[name]: value for name, value in wanted.items()}
    # Without a longest n-gram, vLLM looks for n-grams of the one given length.
    if options.get("max_ngram") is None and options.get("min_ngram") is not None:
        options["max_ngram"] = options["min_ngram"]
    return {**given, "drafter": drafter, **options}


def _drafter(method: Any, model: Any) -> str:
    """Returns the drafter that a method stands for."""
    if method is None:
        if model is None:
            raise UserError(
                "speculative_config names neither a method nor a model; give 'method': 'ngram', "
                "or 'method': 'draft_model' and 'model'"
            )
        method = "ngram" if model in ("ngram", "[ngram]") else "draft_model"
    if not isinstance(method, str) or method not in _DRAFTERS:
        raise UserError(
            f"the speculative method {short(method)} is not emsjax's; "
            + (
                "use 'ngram', which also finds repetitions in the text"
                if method == "suffix"
                else "use 'ngram', or train a draft with `python -m emsjax.train` and name it as "
                "'model' with the method 'draft_model'"
            )
        )
    if _DRAFTERS[method] == "draft-model" and model is None:
        raise UserError(f"the speculative method {method!r} needs a draft; name it as 'model'")
    if _DRAFTERS[method] == "prompt-lookup" and model not in (None, "ngram", "[ngram]"):
        raise UserError(
            f"the speculative method {short(method)} has no model {short(model)}; leave one out"
        )
    return _DRAFTERS[method]
