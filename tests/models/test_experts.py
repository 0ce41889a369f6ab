"""Experts: rows that meet none, checkpoints in two forms, and checkpoints that do not fit."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from emsjax.engine.packing import pack
from emsjax.errors import UserError
from emsjax.loading.export import export_hugging_face
from emsjax.loading.load import load_model
from emsjax.models import experts
from emsjax.pallas_kernels.expert_matmul.tiles import Tiles, tiles_of
from tests.engine.setup import tiny_model
from tests.tiny import checkpoint, oracle

FAMILIES = ("qwen3-moe", "qwen3-moe-mixed", "mixtral", "olmoe")


def weights_of(model: nnx.Module) -> dict[tuple, np.ndarray]:
    return {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(nnx.state(model))}


def assert_equal_weights(one: nnx.Module, other: nnx.Module) -> None:
    first, second = weights_of(one), weights_of(other)
    assert first.keys() == second.keys()
    for path, value in first.items():
        np.testing.assert_array_equal(value, second[path], err_msg=str(path))


def test_unused_rows_reach_no_expert(monkeypatch: pytest.MonkeyPatch):
    """They repeat the first token of the last slot, which is NaN and has no rows of its own."""
    model, read = tiny_model("qwen3-moe"), list[int]()

    def noted(*arguments: Any) -> Tiles:
        tiles = tiles_of(*arguments)
        jax.debug.callback(lambda used: read.append(int(used[0])), tiles.used)
        return tiles

    monkeypatch.setattr(experts, "tiles_of", noted)
    tokens = jnp.full((3, 16), 5, jnp.int32).at[0, :4].set(jnp.arange(10, 14)).at[2, 0].set(7)
    spec = model.cache_spec(3, 16)
    graphdef, weights = nnx.split(model)

    @jax.jit
    def run(weights: nnx.State, q_lens: jax.Array) -> jax.Array:
        batch = pack(tokens, jnp.zeros(3, jnp.int32), q_lens, 24)
        cache = jnp.zeros(spec.shape, spec.dtype)
        return nnx.merge(graphdef, weights)(batch, cache, max_q_len=8)[0]

    q_lens = jnp.asarray([4, 3, 0], jnp.int32)
    clean = run(weights, q_lens)
    other = nnx.merge(graphdef, weights)
    other.embedder.tokens[...] = other.embedder.tokens[...].at[7].set(jnp.nan)
    broken = run(nnx.split(other)[1], q_lens)
    assert np.isnan(broken[7:]).all()
    assert np.isfinite(clean[:7]).all()
    np.testing.assert_array_equal(clean[:7], broken[:7])
    jax.effects_barrier()
    read.clear()
    run(weights, jnp.asarray([1, 0, 0], jnp.int32))
    jax.effects_barrier()
    assert read == [model.config.experts.per_row] * model.config.num_layers


@pytest.mark.parametrize("name", FAMILIES)
def test_experts_that_are_joined_in_the_checkpoint(name: str, tmp_path: Path):
    oracle(name).save_pretrained(tmp_path, save_original_format=False)
    assert any(key.endswith("experts.down_proj") for key in load_file(file_of(tmp_path)))
    assert_equal_weights(load_model(tmp_path).model, load_model(checkpoint(name)).model)


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe-mixed"])
def test_exported_experts_are_read_again(name: str, tmp_path: Path):
    loaded = load_model(checkpoint(name))
    export_hugging_face(loaded, tmp_path)
    assert_equal_weights(load_model(tmp_path).model, loaded.model)


def file_of(directory: Path) -> Path:
    return directory / "model.safetensors"


def copy_of(name: str, directory: Path) -> dict[str, np.ndarray]:
    """Copies a checkpoint and returns its weights."""
    shutil.copytree(checkpoint(name), directory, dirs_exist_ok=True)
    return load_file(file_of(directory))


def test_missing_experts_are_all_named(tmp_path: Path):
    weights = copy_of("olmoe", tmp_path)
    for key in [key for key in weights if ".experts.2." in key or "1.mlp.experts.3.up" in key]:
        del weights[key]
    save_file(weights, file_of(tmp_path))
    with pytest.raises(UserError, match="do not fit its configuration") as caught:
        load_model(tmp_path)
    message = str(caught.value)
    for name in ("gate", "down"):
        assert f"layers.{{0,1,2}}.mlp.experts.2.{name}_proj.weight" in message
    assert "layers.{0,2}.mlp.experts.2.up_proj.weight" in message
    assert "layers.1.mlp.experts.{2,3}.up_proj.weight" in message
    assert "more" not in message


def test_a_router_of_another_width_and_experts_that_nobody_can_choose(tmp_path: Path):
    copy_of("olmoe", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_experts": 3}))
    with pytest.raises(UserError) as caught:
        load_model(tmp_path)
    message = str(caught.value)
    assert "not part of this model model.layers.{0,1,2}.mlp.experts.3.down_proj.weight" in message
    assert (
        "layers.{0,1,2}.mlp.gate.weight has [4, 32] where blocks.mlp.router needs [3, 32]"
        in message
    )


def test_experts_that_are_stored_the_other_way_round(tmp_path: Path):
    """gpt-oss turns them itself, so that the stored shape alone would look right."""
    weights, name = copy_of("gpt-oss", tmp_path), "model.layers.1.mlp.experts.down_proj"
    weights[name] = np.ascontiguousarray(weights[name].swapaxes(1, 2))
    save_file(weights, file_of(tmp_path))
    with pytest.raises(UserError) as caught:
        load_model(tmp_path)
    told = f"{name} gives [5, 48, 32] where blocks.mlp.down.kernel needs [5, 32, 48]"
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"num_experts_per_tok": 9}, "num_experts_per_tok=9, but it must be at most 4"),
        ({"num_experts": 0}, "num_experts=0, but it must be a whole number from 1"),
        ({"clip_qkv": -1.0}, "clip_qkv=-1.0, but it must be a number above 0"),
    ],
)
def test_a_configuration_that_makes_no_sense(change: dict, reason: str, tmp_path: Path):
    copy_of("olmoe", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=reason):
        load_model(tmp_path)
