"""A layer in no stack, such as an EAGLE head's, gives the TPU kernel the norms of its heads."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from emsjax.engine.packing import pack
from emsjax.models.eagle_head import EagleConfig, EagleHead
from tests.engine.switches import PLAIN

LAYERS = replace(PLAIN, vocab_size=64, hidden_size=64, intermediate_size=64, num_layers=1)
LAYERS = replace(LAYERS, num_heads=4, num_kv_heads=2, qk_norm="head")


def test_the_kernel_gives_the_states_of_xla(request: pytest.FixtureRequest):
    head = EagleHead(EagleConfig(LAYERS, 0, 64, 0), rngs=nnx.Rngs(0))
    norm = head.first.attention.q_norm
    assert norm is not None
    norm.scale[...] = jax.random.normal(jax.random.key(1), norm.scale.shape)
    lens = jnp.full((2,), 4, jnp.int32)
    batch = pack(jnp.ones((2, 128), jnp.int32), jnp.zeros_like(lens), lens, 8)
    states = jax.random.normal(jax.random.key(2), (8, 64))
    spec = head.cache_spec(2, 128)
    cache = jnp.full(spec.shape, jnp.nan, spec.dtype)

    def run() -> tuple[np.ndarray, bool]:
        graphdef, params = nnx.split(head)
        traced = jax.jit(
            lambda params, cache: nnx.merge(graphdef, params)(
                batch, states, states, cache, max_q_len=4
            )
        ).trace(params, cache)
        found, _ = traced.lower().compile()(params, cache)
        return np.asarray(found), "split_heads" in str(traced.jaxpr)

    expected, packed = run()
    assert not packed
    request.getfixturevalue("interpreting_tpu")
    found, packed = run()
    assert packed
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
