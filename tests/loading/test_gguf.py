"""GGUF files: values compared with `transformers`, metadata and damaged files."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from tiny_checkpoints import write_gguf

from emsjax.errors import UserError
from emsjax.loading.gguf.architectures import ARCHITECTURES
from emsjax.loading.gguf.config import gguf_config, llama3_factors
from emsjax.loading.gguf.file import GgufFile, hf_name

SUPPORTED = ("llama", "qwen2", "qwen3")
Weights = dict[str, np.ndarray]


def oracle(path: Path) -> dict[str, np.ndarray]:
    """Returns the tensors that `transformers` reads from the same file."""
    pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_config(config)  # needed for its parameter names
    read = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)
    return {name: value.numpy() for name, value in read["tensors"].items()}


def biased(weights: Weights) -> Weights:
    rng = np.random.default_rng(1)
    for i in range(3):
        for part, rows in (("q", 64), ("k", 32), ("v", 32)):
            name = f"model.layers.{i}.self_attn.{part}_proj.bias"
            weights[name] = rng.normal(size=rows).astype(np.float32)
    return weights


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_1])
def test_llama_equals_transformers(tmp_path: Path, weights: Weights, kind: Kind) -> None:
    file = GgufFile(write_gguf(tmp_path / "m.gguf", weights, kind=kind))
    expected = oracle(tmp_path / "m.gguf")
    assert file.shapes() == {name: value.shape for name, value in expected.items()}
    for name, value in expected.items():
        np.testing.assert_array_equal(file.read(name), value, err_msg=name)


def test_rotary_permutation_is_undone(tmp_path: Path, weights: Weights) -> None:
    file = GgufFile(write_gguf(tmp_path / "m.gguf", weights))
    for name, value in weights.items():
        np.testing.assert_array_equal(file.read(name), value, err_msg=name)


def test_qwen2_with_biases(tmp_path: Path, weights: Weights) -> None:
    path = write_gguf(tmp_path / "m.gguf", biased(weights), "qwen2")
    file, expected = GgufFile(path), oracle(path)
    assert "model.layers.0.self_attn.q_proj.bias" in file.shapes()
    for name, value in expected.items():
        np.testing.assert_array_equal(file.read(name), value, err_msg=name)
    assert gguf_config(file, SUPPORTED)["model_type"] == "qwen2"


def test_names() -> None:
    names = ARCHITECTURES["qwen3"].names
    assert hf_name("blk.12.attn_q_norm.weight", names) == "model.layers.12.self_attn.q_norm.weight"
    assert hf_name("output.weight", names) == "lm_head.weight"
    assert hf_name("blk.0.ffn_gate_exps.weight", names) == "blk.0.ffn_gate_exps.weight"


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(Kind.F32, "float32"), (Kind.F16, "float16"), (Kind.BF16, "bfloat16"), (Kind.Q8_0, "float32")],
)
def test_own_dtype(tmp_path: Path, weights: Weights, kind: Kind, dtype: str) -> None:
    assert GgufFile(write_gguf(tmp_path / "m.gguf", weights, kind=kind)).dtype == dtype


def test_config(tmp_path: Path, weights: Weights) -> None:
    config = gguf_config(GgufFile(write_gguf(tmp_path / "m.gguf", weights)), SUPPORTED)
    expected: dict[str, Any] = {
        "model_type": "llama",
        "vocab_size": 64,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"},
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
    }
    assert {key: config[key] for key in expected} == expected


def test_tied_without_output(tmp_path: Path, weights: Weights) -> None:
    del weights["lm_head.weight"]
    path = write_gguf(tmp_path / "m.gguf", weights)
    assert gguf_config(GgufFile(path), SUPPORTED)["tie_word_embeddings"] is True


def test_llama3_rope(tmp_path: Path, weights: Weights) -> None:
    factors = llama3_factors(5e5, 8.0, 8).astype(np.float32)

    def extra(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor("rope_freqs.weight", factors)

    file = GgufFile(write_gguf(tmp_path / "m.gguf", weights, extra=extra))
    rope = gguf_config(file, SUPPORTED)["rope_parameters"]
    assert rope["rope_type"] == "llama3"
    assert rope["factor"] == 8.0
    assert "rope_freqs.weight" not in file.shapes()


def test_llama3_factors_equal_transformers() -> None:
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0}
    scaling |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    config = LlamaConfig(head_dim=64, rope_parameters=scaling, max_position_embeddings=131072)
    inverse, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 5e5 ** (-np.arange(32) / 32)
    np.testing.assert_allclose(plain / inverse.numpy(), llama3_factors(5e5, 32.0, 32), rtol=1e-5)


def test_other_rope_factors_are_refused(tmp_path: Path, weights: Weights) -> None:
    def extra(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor("rope_freqs.weight", np.linspace(1, 9, 8, dtype=np.float32))

    file = GgufFile(write_gguf(tmp_path / "m.gguf", weights, extra=extra))
    with pytest.raises(UserError, match="differently from every Llama 3 model"):
        gguf_config(file, SUPPORTED)


def test_linear_rope(tmp_path: Path, weights: Weights) -> None:
    def extra(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(4.0)

    file = GgufFile(write_gguf(tmp_path / "m.gguf", weights, extra=extra))
    rope = gguf_config(file, SUPPORTED)["rope_parameters"]
    assert rope == {"rope_theta": 5e5, "rope_type": "linear", "factor": 4.0}


def test_cut_off_tensors_are_listed_with_their_shapes(tmp_path: Path, weights: Weights) -> None:
    path = write_gguf(tmp_path / "m.gguf", weights)
    path.write_bytes(path.read_bytes()[:-30_000])
    file = GgufFile(path)
    last = list(weights)[-1]
    assert last in file.truncated
    assert file.shapes()[last] == weights[last].shape


@pytest.mark.parametrize("kept", [0, 3, 20, 100, 400])
def test_cut_off_metadata(tmp_path: Path, weights: Weights, kept: int) -> None:
    path = write_gguf(tmp_path / "m.gguf", weights)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"m\.gguf is not a complete GGUF file \("):
        GgufFile(path)


def test_not_gguf(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"PK\3\4" + bytes(1000))
    with pytest.raises(UserError, match=r"not a complete GGUF file.*magic"):
        GgufFile(tmp_path / "m.gguf")


def test_unsupported_architecture(tmp_path: Path, weights: Weights) -> None:
    path = write_gguf(tmp_path / "m.gguf", weights, "falcon")
    with pytest.raises(
        UserError,
        match=r"architecture 'falcon', but only .* llama, qwen2, qwen3, gemma3, phi3, smollm3 are",
    ):
        GgufFile(path)


def test_quantisation_without_a_decoder(
    tmp_path: Path, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = GgufFile(write_gguf(tmp_path / "m.gguf", weights, kind=Kind.Q8_0))
    monkeypatch.setattr(gguf.quants, "_type_traits", {})
    with pytest.raises(UserError, match=r"tensor lm_head\.weight in .* is quantised as Q8_0"):
        file.read("lm_head.weight")


def test_unknown_quantisation_is_not_called_truncated(tmp_path: Path, weights: Weights) -> None:
    path = write_gguf(tmp_path / "m.gguf", weights)
    content = path.read_bytes()
    name = b"output_norm.weight"
    kind = content.index(name) + len(name) + 4 + 8  # after the number of axes and the one axis
    path.write_bytes(content[:kind] + b"\xe7\x03\0\0" + content[kind + 4 :])
    with pytest.raises(UserError, match="is not a valid GGMLQuantizationType"):
        GgufFile(path)
