"""The tables of vLLM's names, which are those of `docs/python.md`."""

import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from emsjax import (
    LLM,
    CompletionOutput,
    RequestOutput,
    SamplingParams,
    StructuredOutputsParams,
    UserError,
)
from emsjax.requests import speculative_config, vllm_llm, vllm_requests
from emsjax.requests.prompts import _KEYS
from emsjax.requests.speculative_config import drafting_options
from emsjax.requests.vllm_names import Foreign, takes_vllm_names

PAGE = (Path(__file__).parents[2] / "docs" / "python.md").read_text()
# The first column of the page's table, and the table of the code.
TABLES: dict[str, Sequence[Foreign]] = {
    "`LLM(...)`": vllm_llm.LLM_OPTIONS,
    "`speculative_config`": speculative_config.SPECULATIVE_CONFIG,
    "`SamplingParams(...)`": vllm_requests.SAMPLING_PARAMS,
    "`StructuredOutputsParams(...)`": vllm_requests.STRUCTURED_OUTPUTS,
    "`llm.generate(...)`": vllm_requests.GENERATE,
    "`llm.chat(...)`": vllm_requests.CHAT,
    "a prompt": vllm_requests.PROMPT,
    "`llm`": vllm_llm.LLM_ATTRIBUTES,
}
# The fields of vLLM 0.25 and of its earlier versions since 0.6.
ENGINE_ARGS = """
model served_model_name tokenizer hf_config_path runner convert task skip_tokenizer_init
enable_prompt_embeds tokenizer_mode trust_remote_code allowed_local_media_path allowed_media_domains
download_dir safetensors_load_strategy load_format config_format dtype kv_cache_dtype seed
max_model_len distributed_executor_backend pipeline_parallel_size tensor_parallel_size
data_parallel_size enable_expert_parallel max_parallel_loading_workers block_size
enable_prefix_caching disable_sliding_window disable_cascade_attn swap_space cpu_offload_gb
gpu_memory_utilization kv_cache_memory_bytes max_num_batched_tokens max_num_partial_prefills
max_long_partial_prefills long_prefill_token_threshold max_num_seqs max_logprobs logprobs_mode
disable_log_stats revision code_revision rope_scaling rope_theta hf_token hf_overrides
tokenizer_revision quantization enforce_eager disable_custom_all_reduce limit_mm_per_prompt
mm_processor_kwargs enable_lora max_loras max_lora_rank num_gpu_blocks_override num_lookahead_slots
model_loader_extra_config ignore_patterns enable_chunked_prefill structured_outputs_config
reasoning_parser guided_decoding_backend logits_processor_pattern speculative_config
otlp_traces_endpoint collect_detailed_traces scheduling_policy scheduler_cls pooler_config
override_pooler_config compilation_config worker_cls worker_extension_cls kv_transfer_config
kv_events_config generation_config enable_sleep_mode override_generation_config model_impl
override_attention_dtype calculate_kv_scales additional_config use_tqdm_on_load
pt_load_map_location logits_processors async_scheduling max_seq_len_to_capture device
data_parallel_rank data_parallel_backend enable_eplb eplb_config all2all_backend enable_dbo
mm_processor_cache_gb media_io_kwargs io_processor_plugin skip_mm_profiling video_pruning_rate
mamba_cache_dtype lora_extra_vocab_size default_mm_loras kv_sharing_fast_prefill
speculative_model num_speculative_tokens
"""
SAMPLING = """
n presence_penalty frequency_penalty repetition_penalty temperature top_p top_k min_p seed stop
stop_token_ids ignore_eos max_tokens min_tokens logprobs prompt_logprobs prompt_logprob_token_ids
prompt_logprob_start logprob_token_ids flat_logprobs detokenize skip_special_tokens
spaces_between_special_tokens include_stop_str_in_output output_kind stream_interval skip_clone
structured_outputs logit_bias allowed_token_ids extra_args bad_words skip_reading_prefix_cache
thinking_token_budget repetition_detection routed_experts_prompt_start trace_decode_token_ids
best_of use_beam_search length_penalty early_stopping guided_decoding truncate_prompt_tokens
"""
VLLM = {
    "`LLM(...)`": ENGINE_ARGS,
    "`SamplingParams(...)`": SAMPLING,
    "`StructuredOutputsParams(...)`": "json regex choice grammar json_object disable_fallback "
    "disable_any_whitespace disable_additional_properties whitespace_pattern structural_tag",
    "`llm.generate(...)`": "prompts sampling_params use_tqdm lora_request priority "
    "tokenization_kwargs prompt_token_ids",
    "`llm.chat(...)`": "messages sampling_params use_tqdm lora_request chat_template "
    "chat_template_content_format add_generation_prompt continue_final_message tools "
    "chat_template_kwargs mm_processor_kwargs tokenization_kwargs",
    "`RequestOutput`": "request_id prompt prompt_token_ids prompt_logprobs outputs finished "
    "metrics",
    "`CompletionOutput`": "index text token_ids cumulative_logprob logprobs finish_reason "
    "stop_reason finished",
}
OWN: dict[str, set[str]] = {
    "`LLM(...)`": set(inspect.signature(LLM).parameters),
    "`speculative_config`": {"method", "model", *speculative_config._RENAMED},
    "`SamplingParams(...)`": set(inspect.signature(SamplingParams).parameters),
    "`StructuredOutputsParams(...)`": set(inspect.signature(StructuredOutputsParams).parameters),
    "`llm.generate(...)`": set(inspect.signature(LLM.generate).parameters),
    "`llm.chat(...)`": set(inspect.signature(LLM.chat).parameters),
    "a prompt": set(_KEYS),
    "`llm`": set(dir(LLM)),
    **{
        f"`{output.__name__}`": {*dir(output), *(field.name for field in fields(output))}
        for output in (RequestOutput, CompletionOutput)
    },
}


def entries() -> Iterator[Any]:
    for where, table in TABLES.items():
        for entry in table:
            for name, harmless in entry.names.items():
                yield pytest.param(where, entry, name, harmless, id=f"{where}-{name}")


def row(where: str, entry: Foreign) -> str:
    """The row of the page's table for an entry."""
    shown = [
        f"`{name}`" + (f" ({', '.join(f'`{value!r}`' for value in harmless)})" if harmless else "")
        for name, harmless in entry.names.items()
    ]
    return f"| {where} | {', '.join(shown)} | {entry.instead} |"


def rows() -> list[list[str]]:
    """The cells of the page's table about vLLM."""
    table = PAGE[PAGE.index("| where | vLLM | emsjax |") :].splitlines()[2:]
    lines = (line for line in table if line.startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_the_page_has_every_entry():
    expected = {row(where, entry) for where, table in TABLES.items() for entry in table}
    assert expected <= set(PAGE.splitlines())
    refused = {" | ".join(cells) for cells in rows() if not cells[2].startswith("(")}
    assert {line.strip("| ") for line in expected} == refused


def test_the_names_that_the_page_calls_the_same_exist():
    same = {where: set() for where in OWN}
    for where, names, note in rows():
        for name in re.findall(r"`(\w+)`", names):
            if note.startswith("("):
                assert (name in OWN[where]) == note.startswith("(same)"), (where, name)
                same[where].add(name)
    for where, own in OWN.items():
        known = VLLM.get(where, "").split()
        assert own & set(known) <= same[where], where


@pytest.mark.parametrize(("where", "entry", "name", "harmless"), [*entries()])
def test_harmless_values_are_accepted_and_others_refused(where, entry, name, harmless):
    assert name not in OWN[where]
    take = takes_vllm_names("an option", TABLES[where])(lambda: "done")
    for value in harmless:
        assert take(**{name: value}) == "done"
    with pytest.raises(UserError, match=f"^{name}=") as caught:
        take(**{name: ["x" * 1000]})
    assert str(caught.value).endswith(entry.instead)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("where", "names"), [(where, names) for where, names in VLLM.items() if where in TABLES]
)
def test_every_name_of_vllm_is_known(where: str, names: str):
    foreign = {name for entry in TABLES[where] for name in entry.names}
    assert set(names.split()) <= foreign | OWN[where]


def test_a_name_is_in_one_entry():
    for where, table in TABLES.items():
        names = [name for entry in table for name in entry.names]
        assert len(names) == len(set(names)), where


def test_true_is_not_one():
    take = takes_vllm_names("an option", vllm_llm.LLM_OPTIONS)(lambda: None)
    with pytest.raises(UserError, match="pipeline_parallel_size=True"):
        take(pipeline_parallel_size=True)
    take(swap_space=0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batchsize": 4}, "'max_batchsize' is not an option of LLM; did you mean max_batch_s"),
        ({"xyz": 4}, "'xyz' is not an option of LLM; use one of model, tokenizer"),
        ({"gpu_memory_utilization": 0.9}, "set max_batch_size and max_model_len"),
        (
            {"pipeline_parallel_size": 2},
            "pipeline_parallel_size=2 .* by tensor_parallel_size alone",
        ),
        ({"quantization": "awq"}, "quantization='awq' is vLLM's"),
        ({"speculative_model": "x"}, "set draft_model"),
        (
            {"max_num_seqs": 4, "max_batch_size": 8},
            "max_num_seqs=4 is vLLM's name of max_batch_s.* is 8",
        ),
        ({"max_num_seqs": 0}, "max_batch_size is 0"),
        ({"speculative_config": {}}, "names neither a method nor a model"),
        ({"speculative_config": "ngram"}, "speculative_config='ngram' must be a dictionary"),
        ({"speculative_config": {"method": "ernie_mtp"}}, "'ernie_mtp' is not emsjax's; use"),
        ({"speculative_config": {"method": "eagle3"}}, "'eagle3' needs a draft"),
        ({"speculative_config": {"method": "suffix"}}, "'suffix' is not emsjax's; use 'ngram', w"),
        ({"speculative_config": {"method": ["ngram"]}}, r"\['ngram'\] is not emsjax's"),
        ({"speculative_config": {"method": "draft_model"}}, "needs a draft"),
        ({"speculative_config": {"method": "ngram", "model": "x"}}, "has no model 'x'"),
        (
            {"speculative_config": {"method": "ngram", "num_speculative_tokens": 0}},
            "draft_length is 0",
        ),
        (
            {"speculative_config": {"method": "ngram", "num_spec_tokens": 3}},
            "'num_spec_tokens' is not a key of .*; did you mean num_speculative_tokens",
        ),
        (
            {"speculative_config": {"method": "ngram", "draft_tensor_parallel_size": 2}},
            "draft_tensor_parallel_size=2 is vLLM's",
        ),
        (
            {"speculative_config": {"method": "ngram"}, "draft_length": 3},
            "speculative_config is vLLM's form of draft_length; give either",
        ),
        ({"speculative_config": {"method": "ngram"}, "method": "none"}, "method 'none'"),
    ],
)
def test_options_are_refused_before_anything_is_loaded(options: dict, message: str):
    with pytest.raises(UserError, match=message) as caught:
        LLM("no-such-model", **options)
    assert len(str(caught.value)) < 500


NONE = dict.fromkeys(("drafter", "draft_model", "draft_length", "max_ngram", "min_ngram"))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"method": "ngram"}, {"drafter": "prompt-lookup"}),
        (
            {"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 4},
            {"drafter": "prompt-lookup", "draft_length": 5, "max_ngram": 4},
        ),
        ({"model": "[ngram]"}, {"drafter": "prompt-lookup"}),
        (
            {"method": "ngram", "prompt_lookup_min": 5},
            {"drafter": "prompt-lookup", "min_ngram": 5, "max_ngram": 5},
        ),
        (
            {"model": "small", "num_speculative_tokens": 3, "draft_tensor_parallel_size": 1},
            {"drafter": "draft-model", "draft_model": "small", "draft_length": 3},
        ),
        (
            {"method": "draft_model", "model": "small"},
            {"drafter": "draft-model", "draft_model": "small"},
        ),
        (
            {"method": "eagle3", "model": "head"},
            {"drafter": "draft-model", "draft_model": "head"},
        ),
        ({"method": "mtp"}, {"drafter": "draft-model", "draft_model": "mtp"}),
        (
            {"method": "mimo_mtp", "model": "MiMo", "num_speculative_tokens": 1},
            {"drafter": "draft-model", "draft_model": "MiMo", "draft_length": 1},
        ),
    ],
)
def test_a_speculative_config_is_a_drafter(config: dict, expected: dict):
    assert drafting_options(NONE, config) == NONE | expected


def test_a_draft_that_vllm_names_may_be_quantised():
    given = NONE | {"draft_quantize": "int8"}
    expected = given | {"drafter": "draft-model", "draft_model": "small"}
    assert drafting_options(given, {"method": "draft_model", "model": "small"}) == expected


def test_no_speculative_config_changes_nothing():
    given = NONE | {"drafter": "none"}
    assert drafting_options(given, None) == given


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"best_of": 2}, "best_of=2 is vLLM's and not emsjax's; set n"),
        ({"guided_decoding": {"json": "x"}}, "set structured_outputs, its new name"),
        ({"max_token": 5}, "'max_token' is not a sampling parameter; did you mean max_tokens"),
    ],
)
def test_sampling_parameters_of_vllm(options: dict, message: str):
    for make in (lambda: SamplingParams(**options), lambda: SamplingParams.from_mapping(options)):
        with pytest.raises(UserError, match=message):
            make()


def test_harmless_sampling_parameters_change_nothing():
    given = {"best_of": 1, "prompt_logprob_start": None, "spaces_between_special_tokens": True}
    assert SamplingParams(max_tokens=3, **given) == SamplingParams(max_tokens=3)


@pytest.mark.parametrize(
    ("dtype", "name"), [("half", "float16"), ("float", "float32"), ("auto", "auto"), ("x", "x")]
)
def test_names_of_dtypes(dtype: str, name: str):
    assert vllm_llm.dtype_name(dtype) == name


def test_dtypes_of_other_libraries():
    torch = pytest.importorskip("torch")
    assert vllm_llm.dtype_name(torch.bfloat16) == "bfloat16"
