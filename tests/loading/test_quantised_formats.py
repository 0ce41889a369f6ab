"""Checkpoints that other libraries quantised: our weights are those that their formats define."""

import json
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from emsjax.errors import UserError
from emsjax.loading.conversion import convert_model
from emsjax.loading.load import find_model, load_model
from emsjax.loading.named import named_config
from emsjax.loading.quantised.choose import split_format
from emsjax.loading.quantised.format import per_column
from emsjax.loading.quantised.source import QuantisedSource
from emsjax.loading.sources.int4 import regrouped
from emsjax.loading.sources.safetensors import SafetensorsSource
from emsjax.pallas_kernels.quantised import floats
from tests.loading.packed_formats import CASES, Case, Tensors, bytes_of, described
from tests.loading.tiny_checkpoints import CONFIG, llama_weights, write_config

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("real_models")


def as_torch(value: np.ndarray) -> Any:
    """Returns the tensor with the same bytes and type."""
    if value.dtype in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn):
        kind = torch.bfloat16 if value.dtype.itemsize == 2 else torch.float8_e4m3fn
        whole = np.uint16 if value.dtype.itemsize == 2 else np.uint8
        return torch.from_numpy(np.ascontiguousarray(value).view(whole)).view(kind)
    return torch.from_numpy(np.array(value, order="C"))


def save(directory: Path, tensors: Tensors) -> None:
    from safetensors.torch import save_file

    save_file({n: as_torch(v) for n, v in tensors.items()}, directory / "model.safetensors")


def written(directory: Path, case: Case) -> tuple[Tensors, Tensors]:
    """Writes a model whose layers are quantised; returns its tensors, and what they stand for."""
    write_config(directory, quantization_config=case.config)
    tensors: Tensors = {}
    meant = llama_weights()
    for name, value in meant.items():
        if "_proj" not in name:
            tensors[name] = value
            continue
        parts, meant[name] = case.write(*value.shape)
        module = name.removesuffix(".weight")
        tensors |= {f"{module}.{part}": content for part, content in parts.items()}
    save(directory, tensors)
    return tensors, meant


@pytest.mark.parametrize("name", CASES)
def test_weights_are_those_that_the_format_defines(tmp_path: Path, name: str) -> None:
    _, meant = written(tmp_path, CASES[name])
    source = find_model(tmp_path).source
    shapes = {tensor: shape for tensor, shape in source.shapes().items() if tensor in meant}
    assert shapes == {tensor: value.shape for tensor, value in meant.items()}
    assert source.shapes().keys() - meant.keys() == source.spare
    kept = 8 if source.int8 else 4 if source.int4 else None
    assert kept == CASES[name].kept
    for tensor, value in meant.items():
        np.testing.assert_array_equal(source.read(tensor), value)


# Formats whose numbers are kept in 4 bits and in int8, and one that is dequantised.
@pytest.mark.parametrize("name", ["awq", "int8", "gptq-act-order", "fp8-blocks"])
def test_logits_equal_those_of_transformers(tmp_path: Path, name: str) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.models.test_parity import our_logits

    _, meant = written(tmp_path, CASES[name])
    theirs = LlamaForCausalLM(LlamaConfig(**CONFIG)).float().eval()
    theirs.load_state_dict({tensor: torch.from_numpy(value) for tensor, value in meant.items()})
    tokens = np.random.default_rng(0).integers(3, 64, (2, 20))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    model = load_model(tmp_path, quantize="int4" if CASES[name].kept == 4 else None).model
    found = our_logits(model, tokens, 20)
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max(), rtol=1e-3)
    kept = {"int4": 4, "int8": 8}.get(str(model.blocks.mlp.down.kernel[...].dtype))  # type: ignore[attr-defined]
    assert kept == CASES[name].kept
    assert model.embedding_kernel.dtype == np.float32, "the embedding is not quantised here"


def test_a_kept_model_is_converted_and_not_quantised_again(tmp_path: Path) -> None:
    written(tmp_path, CASES["int8"])
    convert_model(find_model(tmp_path), tmp_path / "converted")
    one, two = (load_model(name).model for name in (tmp_path, tmp_path / "converted"))
    for part in ("kernel", "kernel_scale"):
        first, second = (np.asarray(getattr(m.blocks.mlp.up, part)[...]) for m in (one, two))
        np.testing.assert_array_equal(first, second)
    with pytest.raises(UserError, match="has int8 weights already"):
        load_model(tmp_path, quantize="int8")


def dequantised(model: Any, module: str) -> np.ndarray:
    """Returns a module's kernels of all layers as floats."""
    found = model.blocks
    for part in module.split("."):
        found = getattr(found, part)
    return np.asarray(floats(found.weights))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.kept == 4])
def test_4_bits_are_kept_and_stand_for_the_same_numbers(tmp_path: Path, name: str) -> None:
    _, meant = written(tmp_path, CASES[name])
    model: Any = load_model(tmp_path, quantize="int4").model
    for module, names in {"attention.qkv": ("q", "k", "v"), "mlp.down": ("down",)}.items():
        made = dequantised(model, module)
        parent = "self_attn" if module.startswith("attention") else "mlp"
        for layer in range(3):
            tensors = [meant[f"model.layers.{layer}.{parent}.{n}_proj.weight"] for n in names]
            np.testing.assert_array_equal(made[layer], np.concatenate(tensors))
    down = model.blocks.mlp.down
    assert (str(down.kernel.dtype), down.kernel_scales.shape) == ("int4", (3, 3, 64))
    symmetric = name in ("gptq-symmetric", "gptq-v2-by-the-wrong-name", "packed")
    assert (down.kernel_offsets is None) == symmetric
    assert (down.kernel_order is None) == (name not in ("gptq-act-order", "gptq-v2"))


def test_inputs_in_several_orders_are_not_kept(tmp_path: Path) -> None:
    """A product takes its inputs in one order, which queries, keys and values do not share here."""
    written(tmp_path, CASES["gptq-v2"])
    blocks = load_model(tmp_path, quantize="int4").model.blocks  # type: ignore[attr-defined]
    assert blocks.attention.qkv.kernel.dtype == blocks.mlp.up.kernel.dtype == np.float32
    assert blocks.attention.out.kernel.dtype == blocks.mlp.down.kernel.dtype == "int4"


def test_4_bits_can_be_made_floats(tmp_path: Path) -> None:
    """By an option, on a CPU, and by a conversion."""
    _, meant = written(tmp_path, CASES["awq"])
    convert_model(find_model(tmp_path), tmp_path / "converted")
    loaded = load_model(tmp_path, quantize="none"), load_model(tmp_path)
    for model in (*loaded, load_model(tmp_path / "converted")):
        kernel = model.model.blocks.mlp.down.kernel[...]  # type: ignore[attr-defined]
        assert kernel.dtype == np.float32
        np.testing.assert_array_equal(kernel[2], meant["model.layers.2.mlp.down_proj.weight"])


def test_zeros_with_wide_scales_are_not_kept(tmp_path: Path) -> None:
    """An offset would be rounded."""
    tensors, _ = written(tmp_path, CASES["awq"])
    wide = {n: v.astype(np.float32) if n.endswith("scales") else v for n, v in tensors.items()}
    save(tmp_path, wide)
    assert not find_model(tmp_path).source.int4


def test_groups_are_made_smaller_exactly() -> None:
    scales = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(
        regrouped(scales, scales, 12, 2), [[0, 3], [0, 3], [1, 4], [1, 4], [2, 5], [2, 5]]
    )
    assert not regrouped(None, scales, 12, 4).any()


def test_weights_are_not_rounded_to_4_bits(tmp_path: Path) -> None:
    written(tmp_path, CASES["int8"])
    with pytest.raises(UserError, match=r"has no weights in 4 bits to keep.*GPTQ, AWQ"):
        load_model(tmp_path, quantize="int4")


def test_a_model_of_4_bits_can_be_quantised_to_int8(tmp_path: Path) -> None:
    _, meant = written(tmp_path, CASES["gptq"])
    down = load_model(tmp_path, quantize="int8").model.blocks.mlp.down  # type: ignore[attr-defined]
    made = np.asarray(down.kernel[1], np.float32) * np.asarray(down.kernel_scale[1])[:, None]
    expected = meant["model.layers.1.mlp.down_proj.weight"]
    assert np.abs(made - expected).max() <= np.abs(expected).max() / 254 + 1e-6


def test_a_plan_needs_only_the_configuration(tmp_path: Path) -> None:
    write_config(tmp_path, quantization_config=CASES["gptq"].config)
    assert named_config(tmp_path).hidden_size == 64


REFUSED = [
    ({"quant_method": "hqq"}, "method 'hqq'"),
    ({"quant_method": "aqlm"}, "method 'aqlm'"),
    ("int4", "method 'int4'"),
    ({"group_size": 64, "bits": 4}, "without a quant_method"),  # MLX's
    (CASES["gptq"].config | {"bits": 3}, "bits=3"),
    (CASES["gptq"].config | {"group_size": 0}, "group_size=0"),
    (CASES["gptq"].config | {"desc_act": "false"}, "desc_act='false'"),
    (described("pack-quantized", "int", 4, actorder="random"), "actorder='random'"),
    (CASES["gptq"].config | {"dynamic": {"a": {"bits": 8}}}, "dynamic="),
    (CASES["gptq"].config | {"dynamic": ["-:a"]}, "dynamic="),
    (CASES["gptq"].config | {"rotation": "hadamard"}, "'rotation'='hadamard'"),
    (CASES["awq"].config | {"version": "gemv"}, "version='gemv'"),
    (CASES["fp8-blocks"].config | {"weight_block_size": [128]}, r"weight_block_size=\[128\]"),
    (CASES["int8"].config | {"format": "marlin-24"}, "format='marlin-24'"),
    (CASES["int8"].config | {"config_groups": {}}, "config_groups="),
    (described("float-quantized", "float", 8, symmetric=False), "floats that are not symmetric"),
    (CASES["int8"].config | {"sparsity_config": {"format": "24"}}, "sparsity_config="),
    (
        CASES["bitsandbytes"].config | {"load_in_4bit": True},
        "load_in_8bit=True",
    ),
    (CASES["bitsandbytes-nf4"].config | {"bnb_4bit_quant_type": "int4"}, "quant_type='int4'"),
    (
        CASES["bitsandbytes-nf4"].config | {"bnb_4bit_quant_storage": "bfloat16"},
        "bnb_4bit_quant_storage='bfloat16'",
    ),
]


@pytest.mark.parametrize(("config", "word"), REFUSED)
def test_what_is_not_supported_is_refused_by_name(tmp_path: Path, config: Any, word: str) -> None:
    write_config(tmp_path, quantization_config=config)
    for load in (load_model, named_config):
        with pytest.raises(UserError, match=rf"config\.json has a quantization_config .*{word}"):
            load(tmp_path)


# Fields that configurations on the hub have besides those of the cases.
WEIGHTS = {"num_bits": 8, "type": "int", "strategy": "channel"}
PUBLISHED: dict[str, dict[str, Any]] = {
    "AutoGPTQ": CASES["gptq"].config
    | {"model_name_or_path": None, "model_file_base_name": "model", "static_groups": False},
    "optimum": CASES["gptq"].config
    | {
        "batch_size": 1,
        "block_name_to_quantize": "model.layers",
        "cache_block_outputs": True,
        "exllama_config": {"version": 1},
        "module_name_preceding_first_block": ["model.embed_tokens"],
        "use_cuda_fp16": False,
        "use_exllama": True,
    },
    "GPTQModel": CASES["gptq"].config
    | {"lm_head": False, "hyb_act": False, "pack_dtype": "int32", "meta": {"mse": 0.0}},
    "GPTQModel with modules that stay wide": CASES["gptq"].config
    | {"dynamic": {"lm_head": {}, "-:.*attn.*": {}, "-:.*mtp.*": {"bits": 8}}},
    "GPTQ by transformers": CASES["gptq"].config
    | {"act_group_aware": True, "backend": "auto", "format": "gptq", "checkpoint_format": "gptq"},
    "AWQ by transformers": CASES["awq"].config
    | {"act_group_aware": True, "batch_size": 1, "desc_act": False, "format": "gemm", "sym": True},
    "fp8 by transformers": CASES["fp8-blocks"].config
    | {"dequantize": False, "expert_dtype": "fp8", "scale_fmt": "float"},
    "LLM Compressor of 2024": CASES["int8"].config
    | {"quantization_status": "frozen", "sparsity_config": {"format": "dense"}},
    "short": CASES["int8"].config | {"config_groups": {"group_0": {"weights": WEIGHTS}}},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_are_accepted(tmp_path: Path, name: str) -> None:
    write_config(tmp_path, quantization_config=PUBLISHED[name])
    assert named_config(tmp_path).hidden_size == 64


def test_the_last_group_may_be_short() -> None:
    groups = np.array([[1, 2]])
    np.testing.assert_array_equal(per_column(groups, 5, 4), [[1, 1, 1, 1, 2]])
    np.testing.assert_array_equal(per_column(groups, 2, 1, np.array([1, 0])), [[2, 1]])


ACTORDER = described("pack-quantized", "int", 4, strategy="group", group_size=32, actorder="group")


@pytest.mark.parametrize(
    ("name", "config", "part"),
    [
        ("gptq-symmetric", CASES["gptq-symmetric"].config | {"desc_act": True}, "g_idx"),
        ("packed", ACTORDER, "weight_g_idx"),
    ],
)
def test_columns_in_another_order_need_their_groups(
    tmp_path: Path, name: str, config: Any, part: str
) -> None:
    written(tmp_path, CASES[name])
    write_config(tmp_path, quantization_config=config)
    with pytest.raises(UserError, match=rf"down_proj\.{part} is missing"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("part", "dtype", "wanted"),
    [
        ("qzeros", np.float32, "F32, not I32"),
        ("qzeros", np.int16, "I16, not I32"),
        ("g_idx", np.float32, "F32, not whole numbers"),
        ("scales", np.int32, "I32, not floats"),
    ],
)
def test_parts_of_another_type(tmp_path: Path, part: str, dtype: Any, wanted: str) -> None:
    tensors, _ = written(tmp_path, CASES["gptq"])
    tensors[f"model.layers.2.mlp.up_proj.{part}"] = np.ones_like(
        tensors[f"model.layers.2.mlp.up_proj.{part}"], dtype
    )
    save(tmp_path, tensors)
    with pytest.raises(UserError, match=rf"layers\.2\.mlp\.up_proj\.{part} holds {wanted}"):
        load_model(tmp_path)


@pytest.mark.parametrize("column", [-1, 2])
def test_groups_of_columns_that_do_not_exist(tmp_path: Path, column: int) -> None:
    tensors, _ = written(tmp_path, CASES["gptq-v2"])
    tensors["model.layers.1.self_attn.q_proj.g_idx"][3] = column
    save(tmp_path, tensors)
    with pytest.raises(UserError, match=r"1\.self_attn\.q_proj\.g_idx names groups besides 0 to 1"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("name", "part", "number"),
    [("packed", "weight_g_idx", -1), ("gptq", "g_idx", -1), ("gptq", "g_idx", 0)],
)
def test_groups_that_were_never_filled_in_are_in_order(
    tmp_path: Path, name: str, part: str, number: int
) -> None:
    tensors, meant = written(tmp_path, CASES[name])
    for tensor, value in meant.items():
        if "_proj" in tensor:
            unfilled = np.full(value.shape[1], number, np.int32)
            tensors[f"{tensor.removesuffix('.weight')}.{part}"] = unfilled
    save(tmp_path, tensors)
    source = find_model(tmp_path).source
    assert {groups.order for groups in source.int4.values()} == {None}
    for tensor, value in meant.items():
        np.testing.assert_array_equal(source.read(tensor), value)


def source_of(directory: Path, config: dict[str, Any], tensors: Tensors) -> QuantisedSource:
    """Returns the tensors of the only module, "m"."""
    _, its_format = split_format({"quantization_config": config}, "config.json")
    assert its_format is not None
    save(directory, {f"m.{part}": content for part, content in tensors.items()})
    files = SafetensorsSource.find(directory)
    return QuantisedSource(SafetensorsSource(directory, files), its_format)


@pytest.mark.parametrize(
    ("name", "shape"), [("packed", (12, 99)), ("packed-asymmetric", (12, 99)), ("gptq", (12, 96))]
)
def test_last_words_may_hold_fewer_numbers(
    tmp_path: Path, name: str, shape: tuple[int, int]
) -> None:
    tensors, meant = CASES[name].write(*shape)
    source = source_of(tmp_path, CASES[name].config, tensors)
    np.testing.assert_array_equal(source.read("m.weight"), meant)
    if source.int4:
        found = source.read_int4("m.weight")
        assert found.offsets is not None
        assert found.values.shape == shape
        assert found.offsets.shape == found.scales.shape == (12, 3)


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ([12, 70], r"m\.weight_packed has \[12, 8\], not \[12, 9\]"),
        ([12.0, np.inf], r"m\.weight_shape is damaged"),
        ([[12], [64]], r"m\.weight_shape has \[2, 1\], not \[2\]"),
    ],
)
def test_a_shape_that_does_not_fit(tmp_path: Path, stored: Any, message: str) -> None:
    tensors, _ = CASES["packed"].write(12, 64)
    with pytest.raises(UserError, match=message):
        source_of(tmp_path, CASES["packed"].config, tensors | {"weight_shape": np.array(stored)})


@pytest.mark.parametrize("name", ["int8", "fp8-blocks"])
def test_scales_of_a_cache_are_left_out(tmp_path: Path, name: str) -> None:
    """Files for a cache of 8-bit floats have them; emsjax finds scales itself, if any."""
    tensors, _ = written(tmp_path, CASES[name])
    for part in ("self_attn.k_scale", "self_attn.v_scale", "self_attn.k_proj.k_scale"):
        tensors[f"model.layers.1.{part}"] = np.ones(1, np.float32)
    save(tmp_path, tensors)
    assert load_model(tmp_path).model is not None


def test_tiles_are_not_taken_for_rows(tmp_path: Path) -> None:
    tensors, _ = written(tmp_path, CASES["bitsandbytes"])
    for layer in range(3):
        tensors[f"model.layers.{layer}.mlp.up_proj.weight_format"] = np.array(3, np.uint8)
    save(tmp_path, tensors)
    name = "model.layers.{0,1,2}.mlp.up_proj.weight_format"
    with pytest.raises(UserError, match=f"{re.escape(name)} is 3, not 0"):
        load_model(tmp_path)


def test_biases_of_zeros_where_the_model_has_biases(tmp_path: Path) -> None:
    """They are left out only if the model has no biases."""
    tensors, _ = written(tmp_path, CASES["gptq"])
    write_config(tmp_path, quantization_config=CASES["gptq"].config, attention_bias=True)
    del tensors["model.layers.0.mlp.up_proj.bias"]
    save(tmp_path, tensors)
    qkv = load_model(tmp_path).model.blocks.attention.qkv  # type: ignore[attr-defined]
    assert not np.asarray(qkv.bias[...]).any()
    del tensors["model.layers.0.self_attn.q_proj.bias"]
    save(tmp_path, tensors)
    with pytest.raises(UserError, match=r"missing layers\.0\.self_attn\.q_proj\.bias"):
        load_model(tmp_path)


def test_biases_that_are_cut_off(tmp_path: Path) -> None:
    """Whether they are zeros, which the model need not have, is not known."""
    written(tmp_path, CASES["gptq"])
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[: -file.stat().st_size // 20])
    source = find_model(tmp_path).source
    assert any(name.endswith(".bias") for name in source.truncated)
    with pytest.raises(UserError, match=r"do not fit its configuration: truncated model\.layers"):
        load_model(tmp_path)


def test_all_that_is_wrong_with_the_tensors_in_one_error(tmp_path: Path) -> None:
    tensors, _ = written(tmp_path, CASES["gptq"])
    layer = "model.layers.1."
    del tensors[f"{layer}mlp.up_proj.scales"]
    tensors[f"{layer}self_attn.q_proj.qzeros"] = np.zeros((3, 8), np.int32)
    tensors[f"{layer}self_attn.k_proj.scales"][0, 0] = np.nan
    save(tmp_path, tensors)
    with pytest.raises(UserError) as caught:
        load_model(tmp_path)
    message = str(caught.value)
    assert f"{layer}mlp.up_proj.scales is missing" in message
    assert f"{layer}self_attn.q_proj.qzeros has [3, 8], not [2, 8]" in message
    assert f"{layer}self_attn.k_proj.scales holds a number that is not finite" in message
    assert len(message) < 500


def test_all_that_is_wrong_with_4_bits_in_one_error(tmp_path: Path) -> None:
    tensors, _ = written(tmp_path, CASES["bitsandbytes-nf4"])
    layers = [f"model.layers.{n}.mlp.up_proj.weight" for n in range(3)]
    state = "quant_state.bitsandbytes__nf4"
    del tensors[f"{layers[0]}.{state}"]
    tensors[f"{layers[1]}.{state}"] = tensors[f"{layers[1]}.{state}"][:-1]
    tensors[f"{layers[2]}.absmax"] = np.zeros(5, np.uint8)
    tensors[f"{layers[2]}.nested_quant_map"] = np.zeros(255, np.float32)
    save(tmp_path, tensors)
    with pytest.raises(UserError) as caught:
        load_model(tmp_path)
    message = str(caught.value)
    assert f"{layers[0]}.{state} is missing" in message
    assert f"{layers[1]}.{state} is damaged" in message
    assert f"{layers[2]}.absmax has [5], not [" in message
    assert f"{layers[2]}.nested_quant_map has [255], not [256]" in message


@pytest.mark.parametrize(
    "changed", [{"shape": [64]}, {"blocksize": 0}, {"nested_offset": np.inf}, b"\xff", b"[" * 10000]
)
def test_a_damaged_description_of_4_bits(tmp_path: Path, changed: dict[str, Any] | bytes) -> None:
    tensors, _ = written(tmp_path, CASES["bitsandbytes-nf4"])
    state = "model.layers.0.mlp.up_proj.weight.quant_state.bitsandbytes__nf4"
    if isinstance(changed, bytes):
        tensors[state] = np.frombuffer(changed, np.uint8)
    else:
        tensors[state] = bytes_of(json.loads(tensors[state].tobytes()) | changed)
    save(tmp_path, tensors)
    with pytest.raises(UserError, match=f"{state} is damaged"):
        load_model(tmp_path)


def test_scales_that_are_not_finite(tmp_path: Path) -> None:
    tensors, _ = written(tmp_path, CASES["fp8-blocks"])
    for layer, value in {0: np.nan, 2: np.inf}.items():
        tensors[f"model.layers.{layer}.mlp.up_proj.weight_scale_inv"][0, 0] = value
    save(tmp_path, tensors)
    name = re.escape("model.layers.{0,2}.mlp.up_proj.weight_scale_inv")
    with pytest.raises(UserError, match=f"{name} holds a number that is not finite"):
        load_model(tmp_path)


def test_scales_that_are_too_large(tmp_path: Path) -> None:
    """They are finite, and their products with numbers are not."""
    tensors, _ = written(tmp_path, CASES["fp8-blocks"])
    tensors["model.layers.1.mlp.up_proj.weight_scale_inv"][0, 0] = 3e38
    save(tmp_path, tensors)
    with pytest.raises(
        UserError, match=r"layers\.1\.mlp\.up_proj\.weight in .* cannot be deq.*over"
    ):
        load_model(tmp_path)


def test_weights_without_their_scales(tmp_path: Path) -> None:
    """Neither 8-bit floats nor packed bits are taken for weights."""
    tensors, _ = written(tmp_path, CASES["floats"])
    config = json.loads((tmp_path / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    wide = {name: value for name, value in tensors.items() if "scale" not in name}
    save(tmp_path, wide)
    with pytest.raises(UserError, match=r"holds float8_e4m3fn values"):
        load_model(tmp_path)


def test_a_model_that_is_not_quantised_after_all(tmp_path: Path) -> None:
    write_config(tmp_path, quantization_config=CASES["awq"].config)
    save(tmp_path, llama_weights())
    with pytest.raises(UserError, match=re.escape("no qweight of a module")):
        load_model(tmp_path)
