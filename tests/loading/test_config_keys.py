"""Every key of a configuration is read, known to be harmless, or refused by name."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_checkpoints import CONFIG

from emsjax.errors import UserError
from emsjax.loading.conversion import convert_model
from emsjax.loading.families import model_config, supported
from emsjax.loading.hf.config import complete_config, read_json
from emsjax.loading.hf.defaults import type_of_transformers
from emsjax.loading.hf.keys import HARMLESS, ReadKeys
from emsjax.loading.hf.tokenizer import load_tokenizer
from emsjax.loading.load import find_model, load_model
from emsjax.loading.named import named_config
from emsjax.models.registry import FAMILIES
from tests import tiny

pytestmark = pytest.mark.usefixtures("real_models")
SWITCHES = {
    "add_cross_attention",  # refused unless false
    "is_encoder_decoder",
    "use_bidirectional_attention",
}


def config_of(given: dict[str, Any]) -> Any:
    return model_config(complete_config(given, supported(), "config.json"))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_key_of_the_config_class_is_accounted_for(name: str) -> None:
    """A key that a new version of `transformers` adds must be looked at here."""
    from transformers import CONFIG_MAPPING

    known = CONFIG_MAPPING[type_of_transformers(name)]
    fields = {field.name for field in dataclasses.fields(known)}
    keys = ReadKeys(complete_config({"model_type": name}, [name], "config.json"))
    FAMILIES[name].config(keys)
    known = keys.read | HARMLESS | FAMILIES[name].harmless
    assert fields - known <= SWITCHES


@pytest.mark.parametrize("name", FAMILIES)
def test_harmless_keys_are_keys_of_the_family(name: str) -> None:
    assert FAMILIES[name].harmless is not None
    given = dict.fromkeys(FAMILIES[name].harmless, 3)
    # Not numbers.
    for key in ("summary_type", "summary_activation", "hidden_act", "activation_function"):
        given.pop(key, None)
    flags = ("summary_use_proj", "summary_proj_to_labels", "reorder_and_upcast_attn")
    others = dict.fromkeys((*flags, "output_router_logits"), True)
    fractions = ("router_aux_loss_coef", "router_jitter_noise", "partial_rotary_factor")
    others |= dict.fromkeys((*fractions, "rms_norm_eps", "layer_norm_epsilon"), 0.5)
    of_type = {key: value for key, value in others.items() if key in given}
    config_of({"model_type": name} | given | of_type)


@pytest.mark.parametrize("name", tiny.TINY)
def test_saved_models_are_accepted(name: str) -> None:
    file = tiny.checkpoint(name) / "config.json"
    model_config(complete_config(read_json(file), supported(), str(file)))


# Extra keys of the kind that configurations on the hub have; written from memory, not copied.
PUBLISHED = {
    "SmolLM2": {
        "is_llama_config": True,
        "rope_interleaved": False,
        "transformers.js_config": {"a": 1},
    },
    "Qwen2.5": {
        "model_type": "qwen2",
        "use_mrope": False,
        "max_window_layers": 21,
        "sliding_window": 9,
    },
    "MiMo": {
        "model_type": "mimo",
        "attention_bias": True,
        "auto_map": {
            "AutoConfig": "configuration_mimo.MiMoConfig",
            "AutoModel": "modeling_mimo.MiMoModel",
            "AutoModelForCausalLM": "modeling_mimo.MiMoForCausalLM",
        },
        "head_dim": 128,
        "num_nextn_predict_layers": 1,
        "use_mrope": False,
    },
    "OPT": {"model_type": "opt", "prefix": "</s>", "activation_dropout": 0.1, "layerdrop": 0.0},
    "GPT-2": {"model_type": "gpt2", "n_ctx": 1024, "task_specific_params": {"text-generation": {}}},
    "old Llama": {"max_sequence_length": 2048, "pad_token_id": -1, "torch_dtype": "float16"},
    "unsloth": {"unsloth_fixed": True, "unsloth_version": "2025.1"},
    "GPT-2 medium": {"model_type": "gpt2", "n_special": 0, "predict_special_tokens": True},
    "DistilGPT-2": {"model_type": "gpt2", "_num_labels": 1, "id2label": {"0": "LABEL_0"}},
    "GPT-2 of 2020": {"model_type": "gpt2", "output_past": True, "xla_device": True},
    "a causal Llama": {"is_causal": True},
    "Mistral": {"model_type": "mistral", "sliding_window": None, "rope_theta": 1e6},
    "Gemma": {"model_type": "gemma", "hidden_act": "gelu", "hidden_activation": None},
    "Gemma 2": {
        "model_type": "gemma2",
        "cache_implementation": "hybrid",
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window_size": 4096,
    },
    "Gemma 3": {
        "model_type": "gemma3_text",
        "cache_implementation": "hybrid",
        "rope_local_base_freq": 10000,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window_pattern": 6,
        "use_bidirectional_attention": False,
    },
    "Phi-3": {
        "model_type": "phi3",
        "auto_map": {
            "AutoConfig": "configuration_phi3.Phi3Config",
            "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
        },
        "resid_pdrop": 0.0,
        "sliding_window": 2047,
    },
    "Phi-4 mini": {
        "model_type": "phi3",
        "auto_map": {
            "AutoConfig": "configuration_phi3.Phi3Config",
            "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
            "AutoTokenizer": "Xenova/gpt-4o",
        },
        "full_attn_mod": 1,
        "interpolate_factor": 1,
        "lm_head_bias": False,
        "num_attention_heads": 24,
        "partial_rotary_factor": 0.75,
        "rope_scaling": {
            "long_factor": [2.0] * 48,
            "short_factor": [1.0] * 48,
            "type": "longrope",
        },
    },
    "SmolLM3": {
        "model_type": "smollm3",
        "layer_types": ["full_attention"] * 36,
        "max_window_layers": 28,
        "no_rope_layers": [1, 1, 1, 0] * 9,
        "pretraining_tp": 2,
        "use_sliding_window": False,
    },
    "OLMo 3": {
        "model_type": "olmo3",
        "max_position_embeddings": 65536,
        "rope_scaling": {
            "attention_factor": 1.2079441541679836,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 8.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "yarn",
        },
        "rope_theta": 500000,
    },
    "Pythia": {"model_type": "gpt_neox", "rotary_emb_base": 10000, "rotary_pct": 0.25},
    "GPT-NeoX-20B": {
        "model_type": "gpt_neox",
        "attention_probs_dropout_prob": 0,
        "hidden_act": "gelu_fast",
        "hidden_dropout_prob": 0,
    },
    "StarCoder2": {
        "model_type": "starcoder2",
        "activation_function": "gelu",
        "attention_softmax_in_fp32": True,
        "layer_norm_epsilon": 1e-5,
        "mlp_type": "default",
        "norm_type": "layer_norm",
        "rms_norm_eps": 1e-5,
        "scale_attention_softmax_in_fp32": True,
        "scale_attn_weights": True,
    },
    "Falcon": {
        "model_type": "falcon",
        "apply_residual_connection_post_layernorm": False,
        "auto_map": {
            "AutoConfig": "configuration_falcon.FalconConfig",
            "AutoModel": "modeling_falcon.FalconModel",
            "AutoModelForCausalLM": "modeling_falcon.FalconForCausalLM",
            "AutoModelForQuestionAnswering": "modeling_falcon.FalconForQuestionAnswering",
            "AutoModelForTokenClassification": "modeling_falcon.FalconForTokenClassification",
        },
        "num_kv_heads": 71,
    },
    "Qwen3-Coder": {
        "model_type": "qwen3_moe",
        "mlp_only_layers": [],
        "qkv_bias": False,
        "rope_scaling": None,
        "shared_expert_intermediate_size": 0,
        "use_qk_norm": True,
    },
    "Nemotron": {"model_type": "nemotron", "partial_rotary_factor": 0.5, "rope_percent": 0.5},
    "gpt-oss": {
        "model_type": "gpt_oss",
        "experts_per_token": 4,
        "initial_context_length": 4096,
        "num_hidden_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_scaling": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "rope_type": "yarn",
            "truncate": False,
        },
        "rope_theta": 150000,
        "router_aux_loss_coef": 0.9,
        "swiglu_limit": 7.0,
        "quantization_config": {
            "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"],
            "quant_method": "mxfp4",
        },
    },
    "Command R7B": {
        "model_type": "cohere2",
        "cache_implementation": "hybrid",
        "layer_switch": 4,
        "order_of_interleaved_layers": "local_attn_first",
        "position_embedding_type": "rope_gptj",
        "rotary_pct": 1.0,
        "sliding_window_pattern": 4,
        "use_embedding_sharing": True,
        "use_gated_activation": True,
        "use_parallel_block": True,
        "use_parallel_embedding": True,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_keys_are_accepted(name: str, tmp_path: Path) -> None:
    given = {"model_type": "llama"} | PUBLISHED[name]
    (tmp_path / "config.json").write_text(json.dumps(given))
    given.pop("quantization_config", None)
    assert named_config(tmp_path) == config_of(given)


YARN = {"rope_type": "yarn", "factor": 2.0, "truncate": False, "rope_theta": 1e4}
REFUSED = [
    ("llama", {"attn_logit_softcapping": 50.0}),
    ("llama", {"logit_scale": 0.1}),
    ("llama", {"sliding_window": 16}),
    ("llama", {"is_causal": False}),
    ("llama", {"per_layer_config": {"0": {"hidden_act": "relu"}}}),
    ("llama", {"auto_map": {"AutoModelForCausalLM": "m.M"}}),
    ("phi3", {"auto_map": {"AutoModelForCausalLM": "m.Phi3SmallForCausalLM"}}),
    ("phi3", {"auto_map": {"AutoModel": "modeling_phi3.Phi3SmallModel"}}),
    ("phi3", {"auto_map": {"AutoModelForCausalLM": "modeling_phi3.Phi3Model"}}),
    ("phi3", {"auto_map": {"AutoEverything": "modeling_phi3.Phi3ForCausalLM"}}),
    ("phi3", {"auto_map": "modeling_phi3.Phi3ForCausalLM"}),
    ("phi3", {"full_attn_mod": 2}),
    ("starcoder2", {"norm_type": "rms_norm"}),
    ("starcoder2", {"attention_softmax_in_fp32": False}),
    ("qwen3_moe", {"use_qk_norm": False}),
    ("qwen3_moe", {"shared_expert_intermediate_size": 512}),
    ("nemotron", {"rope_percent": 0.25}),
    ("cohere2", {"rotary_pct": 0.5}),
    ("cohere2", {"use_parallel_block": False}),
    ("llama", {"quantization_config": {"quant_method": "gptq", "bits": 4}}),
    ("llama", {"quantization": {"bits": 4}}),
    ("llama", {"partial_rotary_factor": 0.5}),
    ("llama", {"is_encoder_decoder": True}),
    ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 0.0}}),
    ("llama", {"rope_scaling": {"rope_type": "default", "factor": 4.0}}),
    ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "beta_fast": 8}}),
    ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "mscale": 1.0}}),
    ("llama", {"rope_scaling": {"rope_type": "yarn"}}),
    ("llama", {"rope_scaling": {"mrope_section": [1, 2], "type": "default"}}),
    ("gpt2", {"add_cross_attention": True}),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    ("opt", {"layer_norm_elementwise_affine": False}),
    ("mistral", {"layer_types": ["full_attention"] * 32}),
    ("phi3", {"layer_types": ["full_attention"] * 32, "sliding_window": 9}),
    ("starcoder2", {"layer_types": ["full_attention"] * 30, "sliding_window": 9}),
    ("ministral3", {"layer_types": ["full_attention"] * 34, "sliding_window": 9}),
    ("qwen2", {"layer_types": ["sliding_attention"] * 32}),
    ("qwen3", {"layer_types": ["chunked_attention"] * 32}),
    ("qwen3", {"layer_types": ["full_attention"]}),
    ("falcon", {"alibi": True}),
    ("falcon", {"num_ln_in_parallel_attn": 2}),
    ("falcon", {"parallel_attn": False, "new_decoder_architecture": True}),
    ("gemma3_text", {"attn_logit_softcapping": 50.0}),
    ("ministral3", {"logit_scale": 0.5}),
    ("olmo3", {"rope_parameters": {"full_attention": YARN, "sliding_attention": YARN}}),
    ("gpt_oss", {"experts_per_token": 8}),
]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_refuses_keys_that_it_does_not_know(name: str) -> None:
    with pytest.raises(UserError, match="sets odd_switch=3"):
        config_of({"model_type": name, "odd_switch": 3})


@pytest.mark.parametrize(("name", "change"), REFUSED)
def test_what_changes_the_text_is_refused_by_name(name: str, change: dict[str, Any]) -> None:
    key = next(iter(change))
    value = change[key]
    word = "rope" if key.startswith("rope_") else key if key != "layer_types" else "layer"
    word = "attention scaling" if key.startswith("scale_attn") else word
    word = "layer norms" if key.startswith("layer_norm_") else word
    word = "layer_types|window" if isinstance(value, list) else word
    with pytest.raises(UserError, match=word) as caught:
        config_of({"model_type": name} | change)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("file", "word"),
    [
        ("adapter_config.json", "an adapter"),
        ("adapter_model.safetensors", "an adapter"),
        ("adapters.safetensors", "an adapter"),
        ("quantize_config.json", "a quantisation"),
        ("quantization_config.json", "a quantisation"),
        ("hf_quant_config.json", "a quantisation"),
        ("custom_generate/generate.py", "code that generates"),
    ],
)
def test_files_beside_the_model(hf_dir: Path, file: str, word: str) -> None:
    (hf_dir / file).parent.mkdir(exist_ok=True)
    (hf_dir / file).write_text("{}")
    with pytest.raises(UserError, match=f"holds {word} \\({file}\\)"):
        load_model(hf_dir)


def test_an_adapter_beside_a_converted_model(hf_dir: Path, tmp_path: Path) -> None:
    convert_model(find_model(hf_dir), tmp_path / "converted")
    (tmp_path / "converted" / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="holds an adapter"):
        load_model(tmp_path / "converted")


def test_errors_name_the_file(hf_dir: Path) -> None:
    file = hf_dir / "config.json"
    file.write_text(json.dumps(CONFIG | {"logit_scale": 0.5}))
    with pytest.raises(UserError, match=f"^{re.escape(str(file))} sets logit_scale=0.5"):
        load_model(hf_dir)


def test_a_generation_config_that_is_a_link_to_nothing(hf_dir: Path) -> None:
    """An incomplete copy of the hub's cache must not lose the end of text silently."""
    (hf_dir / "generation_config.json").symlink_to("blobs/missing")
    with pytest.raises(UserError, match=r"generation_config\.json cannot be read .*; download"):
        load_model(hf_dir)


def test_an_adapter_alone(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="an adapter"):
        load_model(tmp_path)


def test_tokenizer_with_code_of_its_own(tmp_path: Path) -> None:
    tiny.words().save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"auto_map": {"AutoTokenizer": ["t.T", None]}})
    )
    with pytest.raises(UserError, match=r"tokenizer_config\.json names code of its own"):
        load_tokenizer(tmp_path)


def test_a_type_that_transformers_does_not_know_causes_no_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import CONFIG_MAPPING

    monkeypatch.delitem(CONFIG_MAPPING._extra_content, "mimo", raising=False)
    tiny.byte_level().save_pretrained(tmp_path)
    config = {"model_type": "mimo"} | PUBLISHED["MiMo"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer is not None
    assert tokenizer.decode(tokenizer.encode("abc")) == "abc"
    assert config_of(config).qkv_bias
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "closest"),
    [("gemma4", "; the closest is gemma"), ("phimoe", "; the closest is phi"), ("xyz", r"\.$")],
)
def test_an_unknown_type_is_answered_with_the_closest(name: str, closest: str) -> None:
    with pytest.raises(UserError, match=f"type '{name}', .* families: .*{closest}") as e:
        config_of({"model_type": name})
    assert len(str(e.value)) < 500


BAD_NUMBERS = [
    {"hidden_size": 0},
    {"hidden_size": -64},
    {"num_hidden_layers": 100_000},
    {"num_hidden_layers": 10**12},
    {"num_attention_heads": 0},
    {"num_key_value_heads": 3},
    {"num_key_value_heads": 0},
    {"head_dim": 0},
    {"head_dim": 15},
    {"vocab_size": True},
    {"max_position_embeddings": -1},
    {"rms_norm_eps": float("nan")},
    {"rms_norm_eps": -1e-5},
    {"rope_theta": 0.0},
    {"rope_theta": float("inf")},
    {"eos_token_id": "two"},
    {"eos_token_id": ["</s>"]},
    {"eos_token_id": [2, None]},
    {"eos_token_id": -2},
    {"eos_token_id": 2.5},
    {"model_type": ["llama"]},
    {"hidden_act": "sine"},
]


@pytest.mark.parametrize("change", BAD_NUMBERS)
def test_damaged_configurations(hf_dir: Path, change: dict[str, Any]) -> None:
    (hf_dir / "config.json").write_text(json.dumps(CONFIG | change))
    with pytest.raises(UserError) as caught:
        load_model(hf_dir)
    message = str(caught.value)
    assert len(message) < 500
    assert "\n" not in message


def test_many_layers_that_are_missing(hf_dir: Path) -> None:
    (hf_dir / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": 4000}))
    with pytest.raises(UserError, match=r"missing layers\.\{3,4,\.\.\.,3999\}") as caught:
        load_model(hf_dir)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.bool_])
def test_an_integer_tensor_among_floats(
    hf_dir: Path, weights: dict[str, np.ndarray], dtype: type
) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name] = np.ones((96, 64), dtype)
    save_file(weights, hf_dir / "model.safetensors")
    with pytest.raises(UserError, match=f"tensor {name} .* floating point"):
        load_model(hf_dir)
