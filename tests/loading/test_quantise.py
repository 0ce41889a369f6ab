"""Weights turned into int8 while they are loaded, and kept in checkpoints."""

import json
import tracemalloc
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file
from tiny_checkpoints import LAYER, write_config

from emsjax import convert
from emsjax.errors import UserError
from emsjax.loading.build import read_weights
from emsjax.loading.load import load_model
from emsjax.loading.opened import OpenedModel, open_model
from emsjax.loading.sources.int8 import Int8, quantise
from emsjax.loading.sources.only_floats import OnlyFloats

Weights = dict[str, np.ndarray]

pytestmark = pytest.mark.usefixtures("real_models")


def params_of(directory: Path, quantize: str | None = "int8") -> dict[str, np.ndarray]:
    _, state = read_weights(open_model(directory, {"llama"}), "bfloat16", quantize=quantize)
    return {".".join(path): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(state)}


def nearest(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the int8 values and the scales of a matrix, number by number."""
    scales = [np.float32(max(map(abs, row))) / np.float32(127) for row in weight]
    values = [
        [round(float(np.float32(number) / scale)) if scale else 0 for number in row]
        for row, scale in zip(weight, scales, strict=True)
    ]
    return np.asarray(values), np.asarray(scales, np.float32)


def test_each_row_is_rounded_to_255_steps_of_its_largest_number() -> None:
    weight = np.random.default_rng(0).normal(size=(7, 12)).astype(np.float32)
    weight[2], weight[3] = 0, -weight[1]
    made = Int8(np.empty(weight.shape, np.int8), np.empty(7, np.float32))
    quantise(weight, made)
    values, scales = nearest(weight)
    np.testing.assert_array_equal(made.values, values)
    np.testing.assert_array_equal(made.scale, scales)
    assert np.abs(made.dequantised() - weight).max() <= scales.max() / 2


def test_every_matrix_is_int8_and_everything_else_as_before(hf_dir: Path, weights: Weights) -> None:
    params = params_of(hf_dir)
    small = {name for name, value in params.items() if value.dtype == np.int8}
    assert small == {"embedder.tokens", "head.kernel"} | {
        f"blocks.{name}.kernel" for name in ("attention.qkv", "attention.out", "mlp.up", "mlp.down")
    }
    assert {params[f"{name}_scale"].dtype for name in small} == {np.dtype(np.float32)}
    assert params["final_norm.scale"].dtype == jnp.bfloat16
    gate, up = (weights[f"model.layers.1.mlp.{name}_proj.weight"] for name in ("gate", "up"))
    values, scales = nearest(np.concatenate([gate, up]))
    np.testing.assert_array_equal(params["blocks.mlp.up.kernel"][1], values)
    np.testing.assert_array_equal(params["blocks.mlp.up.kernel_scale"][1], scales)


def test_a_converted_model_keeps_every_number(hf_dir: Path) -> None:
    output = hf_dir.parent / "out"
    assert convert.main([str(hf_dir), str(output), "--quantize", "int8"]) == 0
    expected, found = params_of(hf_dir), params_of(output, None)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
    again = hf_dir.parent / "again"
    assert convert.main([str(output), str(again)]) == 0
    np.testing.assert_array_equal(params_of(again, None)["head.kernel"], found["head.kernel"])
    assert json.loads((again / "emsjax.json").read_text())["format"] == 2


def test_a_scale_that_is_missing_or_not_finite(hf_dir: Path) -> None:
    output = hf_dir.parent / "out"
    assert convert.main([str(hf_dir), str(output), "--quantize", "int8"]) == 0
    chunk = output / "params/head.kernel_scale/0"
    chunk.write_bytes(np.full(64, np.nan, np.float32).tobytes())
    with pytest.raises(UserError, match=r"^head\.kernel_scale in .* are not finite numbers"):
        load_model(output)
    (chunk.parent / ".zarray").rename(chunk.parent / "else")
    with pytest.raises(UserError, match=r"^head\.kernel_scale in .* must be there"):
        load_model(output)


def test_a_weight_that_is_not_finite(hf_dir: Path, weights: Weights) -> None:
    weights["model.layers.1.mlp.down_proj.weight"][3, 4] = np.inf
    save_file(weights, hf_dir / "model.safetensors")
    with pytest.raises(UserError, match=r"^model\.layers\.1\.mlp\.down_proj\.weight in .* cannot"):
        load_model(hf_dir, quantize="int8")


def test_an_unknown_kind(hf_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="quantize 'int3' is unknown; choose int8"):
        load_model(hf_dir, quantize="int3")
    assert convert.main([str(hf_dir), str(hf_dir.parent / "out"), "--quantize", "int3"]) == 2
    assert "quantize 'int3' is unknown" in capsys.readouterr().err


class _Made(OnlyFloats):
    """A source that makes each tensor when it is read, so that it holds none itself."""

    name, dtype, truncated = "made", "float32", frozenset[str]()

    def __init__(self, shapes: dict[str, tuple[int, ...]]):
        self._shapes = shapes

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self._shapes

    def read(self, name: str) -> np.ndarray:
        return np.ones(self._shapes[name], np.float32)


def test_loading_needs_the_result_and_one_tensor(tmp_path: Path) -> None:
    """Counts what NumPy allocates: at most the int8 weights, and two copies of the largest part."""
    factor, layers = 8, 12
    sizes = {"hidden_size": 64, "vocab_size": 64, "intermediate_size": 96, "head_dim": 16}
    changed = {name: size * factor for name, size in sizes.items()}
    write_config(tmp_path, num_hidden_layers=layers, tie_word_embeddings=True, **changed)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"rms_norm_eps": 1e-5, "rope_theta": 1e4, "hidden_act": "silu"}
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens": (64, 64), "norm": (64,)}
    for layer in range(layers):
        shapes |= {f"layers.{layer}.{name}": shape for name, shape in LAYER.items()}
    shapes = {
        f"model.{name}.weight": tuple(factor * size for size in shape)
        for name, shape in shapes.items()
    }
    opened = OpenedModel("made", Path(), _Made(shapes), False, config, (), lambda: None)
    read_weights(opened, "float32", quantize="int8")  # imports and traces
    tracemalloc.start()
    _, params = read_weights(opened, "float32", quantize="int8")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    result = sum(leaf[...].nbytes for _, leaf in nnx.to_flat_state(params))
    largest = 2 * 96 * 64 * factor**2 * 4  # gate and up in float32
    assert result > 10e6
    assert peak < result + 3 * largest
