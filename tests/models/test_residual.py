"""Residual sums that wait for the next norm, whose kernel is interpreted, change no result."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from emsjax.engine.model import Pass
from emsjax.engine.packing import pack
from emsjax.models.config import DecoderConfig
from emsjax.models.decoder import DecoderLM
from emsjax.pallas_kernels import triton_products
from emsjax.pallas_kernels.backends import compiling_for, noting_backends
from tests.kernels.interpreted_products import product_of_pairs
from tests.models.test_stacks import CONFIG, LAYERS

LENGTH = 9
# Sides that the kernels for products take, and heads that those for attention do not.
SIZES = {"hidden_size": 64, "intermediate_size": 64, "num_heads": 8, "num_kv_heads": 4}
WIDE = replace(CONFIG, windows=(), **SIZES)


def random_model(config: DecoderConfig) -> DecoderLM:
    """Returns a model in float16 whose layers have different factors in their norms."""
    model = DecoderLM(config, rngs=nnx.Rngs(0), dtype=jnp.float16)
    keys = iter(jax.random.split(jax.random.key(1), 64))

    def varied(path: tuple, x: jax.Array) -> jax.Array:
        if path[-2] == "scale":
            x = x + jax.random.uniform(next(keys), x.shape, minval=-0.5)
        return x.astype(jnp.float16)

    state = nnx.state(model)
    varied_state = jax.tree_util.tree_map_with_path(
        lambda path, x: varied([str(getattr(each, "key", each)) for each in path], x), state
    )
    nnx.update(model, varied_state)
    return model


def run(config: DecoderConfig, capability: str) -> tuple[Pass, dict[str, str]]:
    """Runs a text through all layers on a GPU of a compute capability; also says which backends."""
    spec = random_model(config).cache_spec(1, 64)
    tokens = jax.random.randint(jax.random.key(0), (1, 64), 0, config.vocab_size, jnp.int32)
    length = jnp.full(1, LENGTH, jnp.int32)
    batch = pack(tokens, jnp.zeros(1, jnp.int32), length, 16)
    with compiling_for("gpu", capability), noting_backends() as picked:
        model = random_model(config)
        empty = jnp.zeros(spec.shape, spec.dtype)
        return model.run(batch, empty, max_q_len=LENGTH, keep=range(LAYERS)), picked


@pytest.mark.parametrize("place", ["before", "around"])
@pytest.mark.usefixtures("interpreting_triton")
def test_sums_may_wait(place: str, monkeypatch: pytest.MonkeyPatch):
    config = replace(WIDE, stacks=(1, 2), norm_offset=True, norm_place=place)
    monkeypatch.setattr(triton_products, "product_transposed", product_of_pairs)
    (waited, kernels), (expected, others) = run(config, "8.0"), run(config, "7.5")
    assert kernels["residual_norm"] == kernels["layer_sums"] == "gpu-triton"
    assert "residual_norm" not in others
    assert waited.inner.shape == (16, LAYERS * config.hidden_size)
    for name in ("hidden", "inner", "cache"):
        both = (np.asarray(getattr(each, name), np.float32) for each in (waited, expected))
        ours, wanted = (x if name == "cache" else x[:LENGTH] for x in both)
        np.testing.assert_allclose(ours, wanted, rtol=1e-2, atol=1e-2, err_msg=name)
