"""vLLM's names in `LLM`: options and attributes that emsjax does not have, and other spellings."""

from typing import Any

from emsjax.errors import UserError, short
from emsjax.requests.vllm_names import foreign_names

LLM_OPTIONS = (
    foreign_names(
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
    foreign_names("set JAX_PLATFORMS to choose the device", device=(None, "auto")),
    foreign_names(
        "set quantize to quantise on load; how a quantised checkpoint named by model is to be read "
        "is known from its configuration",
        quantization=None,
        quantization_param_path=None,
    ),
    foreign_names(
        "set max_batch_size and max_model_len, which decide how much memory is reserved",
        gpu_memory_utilization=(),
        kv_cache_memory_bytes=None,
        num_gpu_blocks_override=None,
        swap_space=0,
        cpu_offload_gb=0,
        block_size=None,
        enable_sleep_mode=False,
    ),
    foreign_names(
        "set kv_dtype for an int8 cache",
        kv_cache_dtype="auto",
    ),
    foreign_names(
        "there is no counterpart: the cache has the dtype of the model, or scales of its own",
        calculate_kv_scales=False,
        mamba_cache_dtype="auto",
        mamba_ssm_cache_dtype="auto",
        mamba_block_size=None,
        disable_hybrid_kv_cache_manager=(None, True, False),
        kv_sharing_fast_prefill=False,
    ),
    foreign_names(
        "there is no counterpart: XLA always compiles the model",
        enforce_eager=False,
        compilation_config=None,
        max_seq_len_to_capture=(),
        attention_config=None,
        attention_backend=None,
    ),
    foreign_names(
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
    foreign_names(
        "there is no counterpart: what a prompt shares with a text in the cache is always copied",
        prefix_caching_hash_algo=(),
        disable_cascade_attn=(True, False),
    ),
    foreign_names(
        "there is no counterpart: emsjax runs no code of a model", trust_remote_code=False
    ),
    foreign_names(
        "there is no counterpart: emsjax generates text only",
        task=("auto", "generate"),
        runner=("auto", "generate"),
        convert=("auto", "none"),
        pooler_config=None,
        override_pooler_config=None,
    ),
    foreign_names(
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
    foreign_names(
        "download the revision, and name its directory as model or tokenizer",
        revision=None,
        code_revision=None,
        tokenizer_revision=None,
    ),
    foreign_names("set HF_HOME to the folder for downloads", download_dir=None),
    foreign_names("set HF_TOKEN to the token", hf_token=None),
    foreign_names(
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
    foreign_names(
        "change config.json in the directory of the model",
        hf_overrides=(None, {}),
        hf_config_path=None,
        rope_scaling=(None, {}),
        rope_theta=None,
        disable_sliding_window=False,
        override_attention_dtype=None,
    ),
    foreign_names(
        "give prompts as token ids and set detokenize=False in SamplingParams",
        skip_tokenizer_init=False,
    ),
    foreign_names(
        "set top_k, top_p, min_p and repetition_penalty in SamplingParams, which otherwise come "
        "from the model's generation config",
        generation_config="auto",
        override_generation_config=(None, {}),
    ),
    foreign_names("set logprobs in SamplingParams, to at most 20", max_logprobs=20),
    foreign_names(
        "there is no counterpart: log-probabilities are the model's own",
        logprobs_mode="raw_logprobs",
    ),
    foreign_names(
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
    foreign_names(
        "set structured_outputs in SamplingParams, for which there is one backend",
        structured_outputs_config=None,
        guided_decoding_backend=(None, "auto"),
        guided_decoding_disable_fallback=(None, True, False),
        guided_decoding_disable_any_whitespace=(None, False),
        guided_decoding_disable_additional_properties=(None, False),
    ),
    foreign_names(
        "there is no counterpart: set logit_bias, allowed_token_ids, bad_words or "
        "structured_outputs in SamplingParams to restrict the tokens",
        logits_processors=None,
        logits_processor_pattern=None,
        reasoning_parser=(None, ""),
    ),
    foreign_names(
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
    foreign_names(
        "there is no counterpart",
        served_model_name=None,
        kv_transfer_config=None,
        kv_events_config=None,
        additional_config=(None, {}),
        enable_return_routed_experts=False,
    ),
    foreign_names("set draft_model", speculative_model=None),
    foreign_names("set draft_length", num_speculative_tokens=None),
    foreign_names("set max_ngram", ngram_prompt_lookup_max=None),
    foreign_names("set min_ngram", ngram_prompt_lookup_min=None),
    foreign_names(
        "set planner, which verifies only the drafts that pay off",
        speculative_disable_by_batch_size=None,
    ),
)

LLM_ATTRIBUTES = (
    foreign_names("there is no counterpart: emsjax has no beam search", beam_search=()),
    foreign_names(
        "there is no counterpart: emsjax generates text only",
        encode=(),
        embed=(),
        classify=(),
        reward=(),
        score=(),
    ),
    foreign_names("use SamplingParams()", get_default_sampling_params=()),
    foreign_names("use LLM(tokenizer=...)", set_tokenizer=()),
    foreign_names("use llm.engine", llm_engine=()),
    foreign_names("read the metrics of each output", get_metrics=()),
    foreign_names("use jax.profiler", start_profile=(), stop_profile=()),
    foreign_names("use llm.target", apply_model=(), collective_rpc=()),
    foreign_names(
        "there is no counterpart",
        sleep=(),
        wake_up=(),
        reset_prefix_cache=(),
        reset_mm_cache=(),
        get_world_size=(),
    ),
)


def refuse_attribute(name: str) -> None:
    """Refuses an attribute that vLLM's `LLM` has.

    Raises:
      UserError: the name is one of those; the message says what to use instead.
    """
    for entry in LLM_ATTRIBUTES:
        if name in entry.names:
            raise UserError(f"LLM.{name} is vLLM's and not emsjax's; {entry.instead}")


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
