"""MXFP4: the experts of gpt-oss are the numbers that `transformers` makes of them."""

import functools
import json
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from emsjax.errors import UserError
from emsjax.loading.load import find_model, load_model
from emsjax.loading.quantised.config import Fields
from emsjax.loading.quantised.mxfp4 import mxfp4
from tests.models.logits import our_logits
from tests.tiny import GPT_OSS_EXPERTS, LLAMA_SIZES, VOCAB_SIZE, random_model

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("real_models")
SETTINGS = LLAMA_SIZES | GPT_OSS_EXPERTS | {"intermediate_size": 64, "num_hidden_layers": 2}
EXPERTS = "model.layers.{}.mlp.experts."
# As published.
LISTED = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]


def theirs(blocks: Any, scales: Any, dtype: Any) -> Any:
    """Returns the weights [E, in, out] that `transformers` loads."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    return convert_moe_packed_tensors(blocks, scales, dtype=dtype)


@pytest.mark.parametrize("name", ["bfloat16", "float32"])
def test_every_number_with_every_scale_is_that_of_transformers(name: str) -> None:
    scales = np.repeat(np.arange(255, dtype=np.uint8), 16).reshape(1, 255, 16)
    blocks = np.tile(np.arange(256, dtype=np.uint8).reshape(16, 16), (1, 255, 1, 1))
    ours = mxfp4(Fields({}, "")).dequantised({"blocks": blocks, "scales": scales})
    expected = theirs(torch.tensor(blocks), torch.tensor(scales), getattr(torch, name))
    assert ours.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(ours.astype(np.float32), expected.float().numpy())


@functools.cache
def model_and_tensors() -> tuple[Any, dict[str, Any]]:
    """Returns a model of `transformers`, and its checkpoint with experts in MXFP4.

    The second layer's down projections are not converted.
    """
    model = random_model("gpt_oss", SETTINGS, seed=0)
    tensors = {key: value.clone() for key, value in model.state_dict().items()}
    draw = torch.Generator().manual_seed(0)
    for layer, part in ((0, "gate_up_proj"), (0, "down_proj"), (1, "gate_up_proj")):
        name = EXPERTS.format(layer) + part
        experts, num_in, num_out = tensors.pop(name).shape
        groups = (experts, num_out, num_in // 32)
        blocks = torch.randint(0, 256, (*groups, 16), generator=draw, dtype=torch.uint8)
        scales = torch.randint(122, 126, groups, generator=draw, dtype=torch.uint8)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        model.get_parameter(name).data = theirs(blocks, scales, torch.float32)
    return model, tensors


def written(directory: Path, changed: dict[str, Any] | None = None) -> Path:
    """Writes the checkpoint, with some tensors changed, or left out for None."""
    from safetensors.torch import save_file

    model, tensors = model_and_tensors()
    mixed = tensors | (changed or {})
    tensors = {key: value for key, value in mixed.items() if value is not None}
    save_file(tensors, directory / "model.safetensors")
    described = {"quant_method": "mxfp4", "modules_to_not_convert": LISTED}
    config = model.config.to_dict() | {"dtype": "float32", "quantization_config": described}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def test_logits_equal_those_of_transformers(tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).integers(3, VOCAB_SIZE, (2, 30))
    with torch.no_grad():
        expected = model_and_tensors()[0](torch.tensor(tokens)).logits.numpy()
    ours = our_logits(load_model(written(tmp_path)).model, tokens, 30)
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=1e-4)


def test_kept_in_the_dtype_that_is_asked_for_or_in_int8(tmp_path: Path) -> None:
    written(tmp_path)
    wide, narrow, whole = (
        load_model(tmp_path, **options).model.blocks.mlp.up  # type: ignore[attr-defined]
        for options in ({}, {"dtype": "bfloat16"}, {"quantize": "int8"})
    )
    exact = np.asarray(wide.kernel[...])
    assert narrow.kernel[...].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(np.asarray(narrow.kernel[...], np.float32), exact)
    scale = np.asarray(whole.kernel_scale[...])[..., None]
    assert np.abs(np.asarray(whole.kernel[...]) * scale - exact).max() <= scale.max() * 0.501


NAME = EXPERTS.format(0) + "down_proj"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({f"{NAME}_scales": None}, f"{NAME}_scales is missing"),
        (
            {f"{NAME}_scales": torch.zeros(5, 32, 3, dtype=torch.uint8)},
            rf"{NAME}_scales has \[5, 32, 3\], not \[5, 32, 2\]",
        ),
        (
            {f"{NAME}_blocks": torch.zeros(5, 32, 2, 8, dtype=torch.uint8)},
            rf"{NAME}_blocks has \[5, 32, 2, 8\]",
        ),
        ({f"{NAME}_scales": torch.zeros(5, 32, 2)}, f"{NAME}_scales holds F32, not U8"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    written(tmp_path, changed)
    with pytest.raises(UserError, match=message):
        find_model(tmp_path)


def test_scales_that_are_no_numbers(tmp_path: Path) -> None:
    changed = {}
    for layer in range(2):
        name = f"{EXPERTS.format(layer)}gate_up_proj_scales"
        changed[name] = model_and_tensors()[1][name].clone()
        changed[name][1, 2, 0] = 255
    written(tmp_path, changed)
    name = re.escape("model.layers.{0,1}.mlp.experts.gate_up_proj_scales")
    with pytest.raises(UserError, match=f"{name} holds a number that is not finite"):
        load_model(tmp_path)
