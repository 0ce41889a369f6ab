"""Evened-out keys: scores stay as they are, bit for bit, and an int8 cache loses less."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig

from emsjax.loading.load import load_model
from emsjax.models.decoder import DecoderLM
from emsjax.models.even_keys import even_out_keys
from emsjax.models.groups import Groups
from emsjax.models.quantised import group_shapes, quantise_shapes
from emsjax.models.registry import FAMILIES as ALL
from tests.engine.setup import tiny_model
from tests.models.logits import our_logits
from tests.tiny import TINY, VOCAB_SIZE, checkpoint

TOKENS = np.random.default_rng(0).integers(3, VOCAB_SIZE, (2, 40))
# Biases, norms of heads, of each head and of all heads, partial and interleaved rotation, learned
# positions, norms that add 1, and bounds.
FAMILIES = ("qwen2", "qwen3", "stablelm", "olmo2", "gpt-neox", "cohere", "opt", "gemma3", "olmoe")
FAMILIES += ("qwen3-moe-mixed",)
AS_THEY_ARE = ("gemma3", "olmoe")


def uneven(name: str):
    """Returns a copy of a tiny model in which every eighth channel of keys is ten times larger."""
    graphdef, weights = nnx.split(tiny_model(name))
    # `even_out_keys` reuses the memory of what it changes, and the tiny model belongs to all tests.
    model = nnx.merge(graphdef, jax.tree.map(jnp.copy, weights))
    for stack in model.stacks:
        attention = stack.attention
        if attention.k_norm is None:
            kernel, config = attention.qkv.kernel, model.config
            first = config.num_heads * config.head_dim
            last = first + config.num_kv_heads * config.head_dim
            kernel[...] = kernel[...].at[:, first:last:8].multiply(10)
        else:
            scale = attention.k_norm.scale
            scale[...] = scale[...].at[..., ::8].multiply(10)
    return model


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_stay_and_int8_loses_less(name: str):
    plain, evened = uneven(name), uneven(name)
    expected = our_logits(plain, TOKENS, 8)
    even_out_keys(evened)
    np.testing.assert_array_equal(our_logits(evened, TOKENS, 8), expected)
    plain.kv_dtype = evened.kv_dtype = "int8"
    errors = [np.abs(our_logits(each, TOKENS, 8) - expected).mean() for each in (plain, evened)]
    if name in AS_THEY_ARE:
        assert errors[1] == errors[0] > 0
    else:
        assert 0 < errors[1] < 0.8 * errors[0]


def test_norms_with_biases_keep_the_logits():
    settings = TINY["phi"][1] | {"qk_layernorm": True, "vocab_size": VOCAB_SIZE}
    config = AutoConfig.for_model("phi", **settings)
    model = DecoderLM(ALL["phi"].config(config.to_dict()), rngs=nnx.Rngs(0))
    attention = model.blocks.attention
    for number, norm in enumerate((attention.q_norm, attention.k_norm)):
        norm.bias[...] = jax.random.normal(jax.random.key(number), norm.bias.shape)
    attention.k_norm.scale[...] = attention.k_norm.scale[...].at[..., ::4].multiply(10)
    expected, before = our_logits(model, TOKENS, 8), np.array(attention.k_norm.bias[...])
    even_out_keys(model)
    assert (attention.k_norm.bias[...] != before).any()
    np.testing.assert_array_equal(our_logits(model, TOKENS, 8), expected)


def test_a_model_is_loaded_with_even_keys_for_an_int8_cache(tmp_path: Path):
    shutil.copytree(checkpoint("qwen3"), tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    for name in (name for name in weights if name.endswith("k_norm.weight")):
        weights[name][::8] *= 10
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    plain, evened = (load_model(tmp_path, kv_dtype=kind).model for kind in (None, "int8"))
    scales = [model.blocks.attention.k_norm.scale[...].copy() for model in (plain, evened)]
    assert scales[1].max() <= 0.5 * scales[0].max()
    even_out_keys(plain)
    np.testing.assert_array_equal(plain.blocks.attention.k_norm.scale[...], scales[1])


def test_4_bit_weights_keep_their_numbers():
    model, path = uneven("qwen2"), "blocks.attention.qkv.kernel"
    group_shapes(model, {path: Groups(16, offsets=True, order=b"")})
    qkv, rng = model.blocks.attention.qkv, np.random.default_rng(0)
    orders = [rng.permutation(qkv.kernel.shape[2]) for _ in range(len(qkv.kernel))]
    qkv.kernel_order.set_value(jnp.asarray(np.stack(orders), jnp.int32))
    numbers = jnp.asarray(rng.integers(-8, 8, qkv.kernel.shape), jnp.int4)
    scales = jnp.asarray(rng.uniform(0.001, 0.1, (2, *qkv.kernel_scales.shape)), jnp.float32)
    for part, value in zip(("", "_scales", "_offsets"), (numbers, *scales), strict=True):
        getattr(qkv, f"kernel{part}").set_value(value)
    expected = our_logits(model, TOKENS, 8)
    even_out_keys(model)
    np.testing.assert_array_equal(qkv.kernel[...], numbers)
    assert not np.array_equal(qkv.kernel_scales[...], scales[0])
    np.testing.assert_array_equal(our_logits(model, TOKENS, 8), expected)


def test_int8_weights_keep_their_numbers():
    model = uneven("qwen2")
    wide = model.blocks.attention.qkv.kernel[...]
    quantise_shapes(model, {"blocks.attention.qkv.kernel"})
    qkv = model.blocks.attention.qkv
    qkv.kernel_scale.set_value(jnp.abs(wide).max(axis=2) / 127)
    qkv.kernel.set_value(jnp.round(wide / qkv.kernel_scale[...][..., None]).astype(jnp.int8))
    numbers, expected = np.array(qkv.kernel[...]), our_logits(model, TOKENS, 8)
    even_out_keys(model)
    np.testing.assert_array_equal(qkv.kernel[...], numbers)
    np.testing.assert_array_equal(our_logits(model, TOKENS, 8), expected)
