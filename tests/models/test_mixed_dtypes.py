"""A model computes in its own dtype, whatever types its embedding, norms and biases have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from emsjax.engine.packing import pack
from emsjax.loading.build import shape_of_model
from emsjax.models.decoder import DecoderLM
from emsjax.models.registry import FAMILIES
from tests.tiny import TINY, VOCAB_SIZE

HALF = jnp.dtype(jnp.bfloat16)


def model_of(name: str) -> DecoderLM:
    """Returns a tiny model that computes in bfloat16, with float32 weights."""
    from transformers import AutoConfig

    model_type, settings = TINY[name]
    hf = AutoConfig.for_model(model_type, **settings, vocab_size=VOCAB_SIZE)
    config = FAMILIES[model_type].config(hf.to_dict())
    return DecoderLM(config, rngs=nnx.Rngs(0), dtype=HALF)


def stored(model: DecoderLM, kernels_only: bool) -> DecoderLM:
    """Returns the model with bfloat16 kernels in its layers, or with all weights in bfloat16."""

    def cast(path: tuple, leaf: jax.Array) -> jax.Array:
        # A list, because a path may hold numbers.
        kernel = "kernel" in [getattr(key, "key", None) for key in path]
        return leaf.astype(HALF) if kernel or not kernels_only else leaf

    graphdef, weights = nnx.split(model)
    return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(cast, weights))


def run(model: DecoderLM) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the hidden states, the cache and the logits of a text."""
    spec = model.cache_spec(1, 16)
    tokens = jnp.arange(3, 19, dtype=jnp.int32)[None]
    batch = pack(tokens, jnp.zeros(1, jnp.int32), jnp.full(1, 16, jnp.int32), 16)
    hidden, cache = model(batch, jnp.zeros(spec.shape, spec.dtype), max_q_len=16)
    return hidden, cache, model.logits(hidden)


# One with learned positions, biases and projections, one with RMS norms and normalised heads.
@pytest.mark.parametrize("name", ["opt-350m", "qwen3"])
def test_embedding_norms_and_biases_of_another_type(name: str):
    mixed, whole = (stored(model_of(name), kernels_only) for kernels_only in (True, False))
    assert mixed.embedding_kernel.dtype == jnp.float32
    assert mixed.dtype == whole.dtype == HALF
    assert mixed.sizes.itemsize == 2
    (hidden, cache, logits), (expected, _, plain) = run(mixed), run(whole)
    assert hidden.dtype == expected.dtype == HALF
    assert cache.dtype == mixed.cache_spec(1, 16).dtype
    assert logits.dtype == jnp.float32
    # The embedding is rounded when it is read, but the logits use it as it is stored.
    np.testing.assert_allclose(logits, plain, atol=0.05 * float(jnp.abs(plain).max()))


def test_shapes_of_a_model_know_its_dtype():
    config = model_of("qwen3").config
    assert shape_of_model(config, HALF).dtype == HALF  # type: ignore[attr-defined]
