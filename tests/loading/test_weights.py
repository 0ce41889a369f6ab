from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file
from tiny_checkpoints import to_bfloat16, write_config

from emsjax.errors import UserError
from emsjax.loading.build import abstract_model, read_weights
from emsjax.loading.opened import open_model
from emsjax.loading.parameters import plan_parameters
from emsjax.models.family import WeightMap, dotted

Weights = dict[str, np.ndarray]


def params_of(directory: Path, dtype: str = "float32") -> dict[str, jax.Array]:
    _, state = read_weights(open_model(directory, {"llama"}), dtype)
    return {".".join(path): leaf[...] for path, leaf in nnx.to_flat_state(state)}


def test_values(hf_dir: Path, weights: Weights) -> None:
    params = params_of(hf_dir)
    np.testing.assert_array_equal(params["embed"], weights["model.embed_tokens.weight"])
    for i in range(3):
        layer = f"model.layers.{i}."
        qkv = [weights[f"{layer}self_attn.{p}_proj.weight"] for p in "qkv"]
        np.testing.assert_array_equal(params["blocks.qkv"][i], np.concatenate(qkv))
        down = weights[f"{layer}mlp.down_proj.weight"]
        np.testing.assert_array_equal(params["blocks.down"][i], down)


@pytest.mark.parametrize("stored", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("wanted", ["float32", "bfloat16", "float16"])
def test_every_dtype_to_every_dtype(
    hf_dir: Path, weights: Weights, stored: type, wanted: str
) -> None:
    held = {name: value.astype(stored) for name, value in weights.items()}
    save_file(held, hf_dir / "model.safetensors")
    params = params_of(hf_dir, wanted)
    assert {p.dtype for p in params.values()} == {jnp.dtype(wanted)}
    expected = held["model.norm.weight"].astype(jnp.dtype(wanted))
    np.testing.assert_array_equal(params["norm"], expected)


def test_tensor_names_may_lack_the_prefix(hf_dir: Path, weights: Weights) -> None:
    bare = {name.removeprefix("model."): value for name, value in weights.items()}
    save_file(bare, hf_dir / "model.safetensors")
    np.testing.assert_array_equal(params_of(hf_dir)["norm"], bare["norm.weight"])


def test_ignored_tensors(hf_dir: Path, weights: Weights) -> None:
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)}
    save_file(weights | extra, hf_dir / "model.safetensors")
    params_of(hf_dir)


def test_all_problems_in_one_error(hf_dir: Path, weights: Weights) -> None:
    for i in range(3):
        del weights[f"model.layers.{i}.self_attn.k_proj.weight"]
    del weights["model.norm.weight"]
    weights["model.layers.3.mlp.up_proj.weight"] = np.ones((96, 64), np.float32)
    weights["model.layers.1.mlp.down_proj.weight"] = np.ones((64, 95), np.float32)
    weights["model.layers.2.mlp.gate_proj.weight"] = np.ones((96, 63), np.float32)
    file = hf_dir / "model.safetensors"
    save_file(dict(sorted(weights.items())), file)
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UserError) as caught:
        params_of(hf_dir)
    message = str(caught.value)
    assert "missing layers.{0,1,2}.self_attn.k_proj.weight, norm.weight;" in message
    assert "not part of this model model.layers.3.mlp.up_proj.weight;" in message
    assert "misshapen model.layers." in message
    assert " and 1 more; check" in message
    assert "truncated model." in message
    assert "\n" not in message


def test_problems_are_found_before_reading(hf_dir: Path, weights: Weights) -> None:
    del weights["model.norm.weight"]
    save_file(weights, hf_dir / "model.safetensors")
    seen = []
    opened = open_model(hf_dir, {"llama"})
    with pytest.raises(UserError, match=r"missing norm\.weight"):
        read_weights(opened, "float32", lambda *counts: seen.append(counts))
    assert seen == []


def test_weights_of_another_size(hf_dir: Path) -> None:
    write_config(hf_dir, num_hidden_layers=2, vocab_size=65)
    with pytest.raises(UserError, match=r"model\.layers\.2\.") as caught:
        params_of(hf_dir)
    assert "has [64, 64] where embed needs [65, 64]" in str(caught.value)


def test_progress(hf_dir: Path, weights: Weights) -> None:
    seen: list[tuple[int, int]] = []
    read_weights(open_model(hf_dir, {"llama"}), "float32", lambda *counts: seen.append(counts))
    assert seen == [(i + 1, len(weights)) for i in range(len(weights))]


def test_weight_map_must_cover_the_model(hf_dir: Path) -> None:
    opened = open_model(hf_dir, {"llama"})
    _, abstract, full = abstract_model(opened.hf_config)
    shapes = {dotted(path): leaf.shape for path, leaf in nnx.to_flat_state(abstract)}
    rules = {path: rule for path, rule in full.rules.items() if path != "norm"}
    with pytest.raises(ValueError, match="disagree about parameters: norm"):
        plan_parameters(shapes, WeightMap(rules), opened.source)


def test_parameters_do_not_alias_the_file(hf_dir: Path, weights: Weights) -> None:
    params = params_of(hf_dir)
    file = hf_dir / "model.safetensors"
    with file.open("r+b") as stream:
        stream.write(b"\0" * file.stat().st_size)
    np.testing.assert_array_equal(params["norm"], weights["model.norm.weight"])


def test_bfloat16_checkpoint(hf_dir: Path, weights: Weights) -> None:
    save_file(to_bfloat16(weights), hf_dir / "model.safetensors")
    assert open_model(hf_dir, {"llama"}).source.dtype == "bfloat16"
