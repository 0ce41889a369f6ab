"""Experts that other libraries quantised, one module each: our weights are those of the format."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx

from emsjax.loading import build
from emsjax.loading.conversion import convert_model
from emsjax.loading.load import find_model, load_model
from emsjax.models.family import dotted
from emsjax.pallas_kernels.quantised import Grouped, floats
from tests.loading.packed_formats import CASES, Tensors
from tests.loading.test_quantised_formats import save
from tests.models.logits import our_logits
from tests.tiny import LLAMA_SIZES, random_model

pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("real_models")

SIZES = LLAMA_SIZES | {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_experts_per_tok": 2,
}
MODELS = {
    "mixtral": {"num_local_experts": 3, "intermediate_size": 32},
    "qwen3_moe": {"num_experts": 3, "moe_intermediate_size": 32, "mlp_only_layers": [1]},
}


def written(directory: Path, model_type: str, form: str) -> Tensors:
    """Writes a model whose layers are quantised but for routers; returns what its tensors mean."""
    model = random_model(model_type, SIZES | MODELS[model_type], seed=0)
    model.save_pretrained(directory)
    meant = {key: np.asarray(value) for key, value in _saved(directory).items()}
    tensors = dict(meant)
    for name in [key for key in meant if ".experts." in key or "_proj." in key]:
        parts, meant[name] = CASES[form].write(*tensors.pop(name).shape)
        tensors |= {f"{name.removesuffix('.weight')}.{part}": x for part, x in parts.items()}
    save(directory, tensors)
    file = directory / "config.json"
    config = json.loads(file.read_text()) | {"quantization_config": CASES[form].config}
    file.write_text(json.dumps(config))
    return meant


def _saved(directory: Path) -> Tensors:
    from safetensors.numpy import load_file

    return load_file(directory / "model.safetensors")


def parameters(directory: Path, **options: str | None) -> dict[str, np.ndarray]:
    model = load_model(directory, **options).model
    return {dotted(path): np.asarray(x[...]) for path, x in nnx.to_flat_state(nnx.state(model))}


@pytest.mark.parametrize(
    ("model_type", "form"),
    [
        ("mixtral", "awq"),
        ("mixtral", "int8"),
        ("qwen3_moe", "gptq"),
        ("qwen3_moe", "packed"),
        ("qwen3_moe", "fp8-blocks"),
        ("qwen3_moe", "floats"),
    ],
)
def test_experts_are_those_that_the_format_defines(
    tmp_path: Path, model_type: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    meant = written(tmp_path, model_type, form)
    with monkeypatch.context() as accelerator:
        accelerator.setattr(build, "_floats_are_faster", lambda: False)
        accelerator.setattr(build, "LANES", 32)
        ours = parameters(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    save(tmp_path, meant)
    expected = parameters(tmp_path)
    for name, value in expected.items():
        scale, scales = ours.get(f"{name}_scale"), ours.get(f"{name}_scales")
        kept = CASES[form].kept if name.endswith(".kernel") and name.startswith("blocks") else None
        assert (scale is not None) == (kept == 8), name
        assert (scales is not None) == (kept == 4), name
        made = ours[name] if scale is None else ours[name] * scale[..., None]
        if scales is not None:
            made = np.asarray(floats(Grouped(ours[name], scales, ours.get(f"{name}_offsets"))))
        np.testing.assert_array_equal(made, value, err_msg=name)


def test_a_model_with_experts_in_4_bits_computes_what_floats_do(tmp_path: Path) -> None:
    """The experts are read from the file, and from a conversion that keeps 4 bits."""
    written(tmp_path / "m", "mixtral", "awq")
    convert_model(find_model(tmp_path / "m"), tmp_path / "converted", quantize="int4")
    tokens = np.random.default_rng(0).integers(3, 64, (2, 20))
    expected = our_logits(load_model(tmp_path / "m").model, tokens, 20)
    for name in ("m", "converted"):
        model: Any = load_model(tmp_path / name, quantize="int4").model
        assert model.blocks.mlp.down.kernel.dtype == "int4"
        found = our_logits(model, tokens, 20)
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max(), rtol=1e-4)


def test_experts_with_inputs_in_another_order_are_floats(tmp_path: Path) -> None:
    meant = written(tmp_path, "mixtral", "gptq-act-order")
    model: Any = load_model(tmp_path, quantize="int4").model
    assert model.blocks.attention.out.kernel.dtype == "int4"
    gate = meant["model.layers.1.block_sparse_moe.experts.2.w1.weight"]
    np.testing.assert_array_equal(model.blocks.mlp.up.kernel[1, 2][: len(gate)], gate)


def test_experts_of_4_bits_can_be_taken_to_int8(tmp_path: Path) -> None:
    written(tmp_path, "mixtral", "awq")
    wide, whole = parameters(tmp_path), parameters(tmp_path, quantize="int8")
    for name in ("blocks.mlp.up.kernel", "blocks.mlp.down.kernel"):
        scale = whole[f"{name}_scale"][..., None]
        assert np.abs(whole[name] * scale - wide[name]).max() <= 0.501 * scale.max()
