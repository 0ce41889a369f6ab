"""Compares the logits of every position and family with PyTorch `transformers`, in float32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from emsjax.engine.packing import pack
from emsjax.loading.load import load_model
from tests.tiny import TINY, VOCAB_SIZE, checkpoint, oracle

torch = pytest.importorskip("torch")


def our_logits(model, tokens: np.ndarray, chunk: int) -> np.ndarray:
    """Computes logits [B, length, V] in packed forward passes of `chunk` tokens per slot."""
    num_slots, length = tokens.shape
    spec = model.cache_spec(num_slots, 256)
    # The cache starts as NaN, so that reading past `kv_lens` shows.
    cache = jnp.full(spec.shape, jnp.nan, spec.dtype)
    history = jnp.asarray(tokens, jnp.int32)
    graphdef, params = nnx.split(model)

    @functools.partial(jax.jit, static_argnums=(3, 4))
    def forward(params, cache, starts, rows, capacity):
        model = nnx.merge(graphdef, params)
        batch = pack(history, starts, jnp.full_like(starts, rows), capacity)
        hidden, cache = model(batch, cache, max_q_len=rows)
        return model.logits(hidden), cache

    steps = []
    for start in range(0, length, chunk):
        rows = min(chunk, length - start)
        starts = jnp.full((num_slots,), start, jnp.int32)
        logits, cache = forward(params, cache, starts, rows, num_slots * rows + 3)
        logits = logits[: num_slots * rows]
        steps.append(np.asarray(logits).reshape(num_slots, rows, -1))
    return np.concatenate(steps, axis=1)


@pytest.mark.parametrize("chunk", [1, 7, 100])
@pytest.mark.parametrize("name", TINY)
def test_logits_of_every_position_equal_transformers(name: str, chunk: int):
    length = 100 if chunk > 1 else 30
    tokens = np.random.default_rng(0).integers(3, VOCAB_SIZE, (3, length))
    with torch.no_grad():
        theirs = oracle(name)(torch.tensor(tokens)).logits.numpy()
    ours = our_logits(load_model(checkpoint(name)).model, tokens, chunk)
    # The tolerance is for float32 over 3 layers. The scale of the logits is about 1 to 10.
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4)
    assert np.abs(theirs).max() > 0.5
