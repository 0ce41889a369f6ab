"""A model whose layers are several stacks computes what it computes as one stack."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from emsjax.engine.model import Inner
from emsjax.engine.packing import pack
from emsjax.models.config import DecoderConfig, Rope
from emsjax.models.decoder import DecoderLM

LAYERS, LENGTH = 3, 24
CONFIG = DecoderConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_layers=LAYERS,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_positions=64,
    norm="rms",
    norm_eps=1e-5,
    activation="silu",
    gated=True,
    rope=Rope((1.0, 0.5, 0.25, 0.1)),
    # Each layer sees another part of the text, so that swapped layers would show.
    windows=(4, 0, 9),
)


def in_stacks(whole: DecoderLM, stacks: tuple[int, ...]) -> DecoderLM:
    """The same weights, cut into stacks."""
    config = replace(whole.config, stacks=stacks)
    model = DecoderLM(config, rngs=nnx.Rngs(1))
    state = nnx.state(whole)
    first = 0
    for stack, layers in zip(model.blocks, stacks, strict=True):
        span = slice(first, first + layers)
        nnx.update(stack, jax.tree.map(lambda x, span=span: x[span], state["blocks"]))
        first += layers
    nnx.update(model, nnx.State({k: v for k, v in state.items() if k != "blocks"}))
    return model


def run(model: DecoderLM) -> tuple[np.ndarray, np.ndarray]:
    """Logits and cache of one text."""
    spec = model.cache_spec(1, 32)
    tokens = jax.random.randint(jax.random.key(0), (1, 32), 0, CONFIG.vocab_size, jnp.int32)
    zero, length = jnp.zeros(1, jnp.int32), jnp.full(1, LENGTH, jnp.int32)
    batch = pack(tokens, zero, length, LENGTH)
    hidden, cache = model(batch, jnp.zeros(spec.shape, spec.dtype), max_q_len=LENGTH)
    return np.asarray(model.logits(hidden)), np.asarray(cache)


@pytest.mark.parametrize("stacks", [(1, 2), (2, 1), (1, 1, 1)])
def test_stacks_compute_what_one_stack_computes(stacks: tuple[int, ...]):
    whole = DecoderLM(CONFIG, rngs=nnx.Rngs(0))
    (logits, cache), (expected, expected_cache) = run(in_stacks(whole, stacks)), run(whole)
    # The scans are compiled separately and may sum in another order: float32 rounding only.
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(cache, expected_cache, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stacks", [(3,), (1, 2)])
def test_a_pass_that_begins_at_a_layers_input_ends_like_the_whole_pass(stacks: tuple[int, ...]):
    model = in_stacks(DecoderLM(CONFIG, rngs=nnx.Rngs(0)), stacks) if stacks[1:] else None
    model = model or DecoderLM(CONFIG, rngs=nnx.Rngs(0))
    spec, length = model.cache_spec(1, 32), jnp.full(1, LENGTH, jnp.int32)
    tokens = jax.random.randint(jax.random.key(0), (1, 32), 0, CONFIG.vocab_size, jnp.int32)
    batch = pack(tokens, jnp.zeros(1, jnp.int32), length, LENGTH)
    empty = jnp.zeros(spec.shape, spec.dtype)
    whole = model.run(batch, empty, max_q_len=LENGTH, keep=range(LAYERS))
    for layer, states in enumerate(jnp.split(whole.inner, LAYERS, axis=1)):
        rest = model.run(batch, empty, max_q_len=LENGTH, start=Inner(states, layer))
        np.testing.assert_allclose(rest.hidden, whole.hidden, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(rest.cache[layer:], whole.cache[layer:], rtol=1e-5, atol=1e-6)
        assert not rest.cache[:layer].any(), "layers that do not run write nothing"


def test_sizes_do_not_depend_on_the_stacks():
    whole = DecoderLM(CONFIG, rngs=nnx.Rngs(0))
    assert in_stacks(whole, (1, 2)).sizes == whole.sizes


def test_stacks_that_are_not_all_layers_are_refused():
    with pytest.raises(ValueError, match=r"stacks of \(1, 1\) layers are not 3 layers"):
        replace(CONFIG, stacks=(1, 1))
