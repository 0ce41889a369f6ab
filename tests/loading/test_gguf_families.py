"""GGUF files of each architecture, written as llama.cpp's converter does: the logits of PyTorch.

The names of tensors come from the `gguf` package, and what the converter does to them is written
down here once more.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tiny_checkpoints import permuted

from emsjax.errors import UserError
from emsjax.loading.load import find_model, load_model
from tests import tiny
from tests.engine.setup import check_greedy, jobs, make_engine, run_all
from tests.models.logits import our_logits

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("real_models")

Add = Callable[[gguf.GGUFWriter], None]
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", tiny.LLAMA_SIZES | {"rope_theta": 5e3}),
    "qwen2": ("qwen2", tiny.LLAMA_SIZES | {"rope_theta": 5e3}),
    "qwen3": ("qwen3", tiny.LLAMA_SIZES | {"head_dim": 16}),
    "gemma3": (
        "gemma3_text",
        tiny.LLAMA_SIZES
        | {
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 24,
            "layer_types": tiny.LAYER_TYPES,
            "rope_parameters": GEMMA3_ROPE,
        },
    ),
    "phi3": ("phi3", tiny.LLAMA_SIZES | tiny.LONGROPE | {"sliding_window": 24}),
    "smollm3": ("smollm3", tiny.LLAMA_SIZES | {"num_hidden_layers": 4, "rope_theta": 5e3}),
}


def gemma3(writer: gguf.GGUFWriter) -> None:
    writer.add_sliding_window(24)
    writer.add_uint32("gemma3.attention.sliding_window_pattern", 2)
    writer.add_rope_freq_base(1e6)
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(4.0)
    writer.add_key_length(16)
    writer.add_value_length(16)


def phi3(writer: gguf.GGUFWriter) -> None:
    writer.add_sliding_window(24)
    writer.add_rope_freq_base(1e4)
    writer.add_rope_dimension_count(4)
    writer.add_rope_scaling_orig_ctx_len(300)
    factor = math.sqrt(1 + math.log(512 / 300) / math.log(300))
    writer.add_rope_scaling_attn_factors(factor)
    for name in ("short", "long"):
        factors = tiny.LONGROPE["rope_parameters"][f"{name}_factor"]
        writer.add_tensor(f"rope_factors_{name}.weight", np.asarray(factors, np.float32))


def with_base(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_freq_base(5e3)
    writer.add_rope_dimension_count(8)


def qwen3(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_freq_base(1e4)
    writer.add_key_length(16)


ADD: dict[str, Add] = {
    **{"qwen3": qwen3, "gemma3": gemma3, "phi3": phi3},
    **dict.fromkeys(("llama", "qwen2", "smollm3"), with_base),
}


def converted(arch: str, name: str, weight: np.ndarray) -> np.ndarray:
    """Returns a tensor as llama.cpp's converter writes it."""
    if arch == "gemma3" and name.endswith("norm.weight"):
        return weight + 1
    return permuted(name, weight, 4, 2) if arch in ("llama", "smollm3") else weight


def write(path: Path, arch: str, model: Any, add: Add = lambda _: None) -> Path:
    """Writes a model as a GGUF file; returns the file."""
    sizes = model.config
    names = gguf.get_tensor_name_map(
        {text: key for key, text in gguf.MODEL_ARCH_NAMES.items()}[arch], sizes.num_hidden_layers
    )
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(sizes.num_hidden_layers)
    writer.add_context_length(sizes.max_position_embeddings)
    writer.add_embedding_length(sizes.hidden_size)
    writer.add_feed_forward_length(sizes.intermediate_size)
    writer.add_head_count(sizes.num_attention_heads)
    writer.add_head_count_kv(sizes.num_key_value_heads)
    writer.add_layer_norm_rms_eps(sizes.rms_norm_eps)
    writer.add_eos_token_id(2)
    ADD[arch](writer)
    add(writer)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and sizes.tie_word_embeddings:
            continue
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(stored, converted(arch, name, weight.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("arch", SETTINGS)
def test_logits_equal_transformers(tmp_path: Path, arch: str) -> None:
    model_type, settings = SETTINGS[arch]
    model = tiny.random_model(model_type, settings, seed=1)
    tokens = np.random.default_rng(0).integers(3, tiny.VOCAB_SIZE, (2, 60))
    with torch.no_grad():
        theirs = model(torch.tensor(tokens)).logits.numpy()
    ours = our_logits(load_model(write(tmp_path / "m.gguf", arch, model)).model, tokens, 60)
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("arch", SETTINGS)
def test_20_prompts_through_3_slots_with_prompt_lookup(tmp_path: Path, arch: str) -> None:
    model_type, settings = SETTINGS[arch]
    model = tiny.random_model(model_type, settings, seed=1)
    ours = load_model(write(tmp_path / "m.gguf", arch, model)).model
    results = run_all(make_engine(ours, "prompt-lookup", 3), jobs())
    check_greedy(model, results)
    assert sum(result.metrics.accepted_tokens for result in results) > 0


def refused(arch: str, tmp_path: Path, match: str, add: Add) -> None:
    model_type, settings = SETTINGS[arch]
    path = write(tmp_path / "m.gguf", arch, tiny.random_model(model_type, settings, seed=1), add)
    with pytest.raises(UserError, match=match):
        find_model(path)


def test_what_another_architecture_reads_is_refused(tmp_path: Path) -> None:
    key = "attention.sliding_window"
    refused("smollm3", tmp_path, key, lambda writer: writer.add_sliding_window(24))


def test_a_soft_cap_of_gemma3_is_refused(tmp_path: Path) -> None:
    cap = "final_logit_softcapping"
    refused("gemma3", tmp_path, cap, lambda writer: writer.add_final_logit_softcapping(30.0))
