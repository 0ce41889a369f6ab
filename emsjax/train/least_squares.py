"""The start of a state map: the linear map that is closest to the target's own states.

A layer's input for a token is regressed on its input for the token before and on the token's
embedding. The solution is exact, and it takes as long as the target takes to read the texts.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from emsjax.models.state_map import StateMap
from emsjax.train.state_loss import Frozen
from emsjax.train.whole_texts import WholeTexts, read_whole

# Penalty on the squared weights of inputs that have a mean square of 1.
RIDGE = 1e-3


def solve(
    state_map: StateMap,
    target_def: Any,
    frozen: Frozen,
    batches: Iterable[WholeTexts],
    places: int,
) -> None:
    """Sets the linear part of a map.

    Args:
      state_map: the map; it is changed.
      target_def: the target's definition.
      frozen: its parameters.
      batches: texts.
      places: at least the tokens of the longest output.
    """
    layer = state_map.config.first_layer

    @jax.jit
    def moments(frozen: Frozen, texts: WholeTexts, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
        inputs, outputs = pairs(nnx.merge(target_def, frozen.target), frozen, texts, layer, places)
        inputs = inputs * scale[None]
        with jax.default_matmul_precision("highest"):
            return inputs.T @ inputs, inputs.T @ outputs

    width = state_map.linear.kernel.shape[1] + 1
    scale = np.ones(width, np.float32)
    square, product = np.zeros((width, width)), np.zeros((width, state_map.config.hidden_size))
    for number, texts in enumerate(batches):
        sums = moments(frozen, texts, scale)
        if not number:
            # Inputs differ in size by orders of magnitude, which sums in float32 do not bear.
            mean = np.diagonal(sums[0]) / max(float(sums[0][-1, -1]), 1.0)
            scale = np.where(mean > 0, 1 / np.sqrt(np.maximum(mean, 1e-20)), 1.0).astype(np.float32)
            sums = moments(frozen, texts, scale)
        square += np.asarray(sums[0], np.float64)
        product += np.asarray(sums[1], np.float64)
    square += RIDGE * max(square[-1, -1], 1.0) * np.eye(width)
    weights = np.linalg.solve(square, product) * scale[:, None]
    state_map.linear.kernel[...] = jnp.asarray(weights[:-1].T, jnp.float32)
    assert state_map.linear.bias is not None
    state_map.linear.bias[...] = jnp.asarray(weights[-1], jnp.float32)


def pairs(
    target: Any, frozen: Frozen, texts: WholeTexts, layer: int, places: int
) -> tuple[jax.Array, jax.Array]:
    """Returns inputs [N, D + E + 1] and outputs [N, D] of the regression, 0 where there are none.

    The last input is 1.
    """
    reading = read_whole(target, texts, layer, places + 1)
    before, after = reading.inner[:, :-1], reading.inner[:, 1:]
    embedded = frozen.shared.embed(reading.outputs[:, :-1]).astype(jnp.float32)
    there = jnp.arange(places, dtype=jnp.int32)[None] < reading.counts[:, None]
    ones = jnp.ones((*there.shape, 1), jnp.float32)
    inputs = jnp.concatenate([before.astype(jnp.float32), embedded, ones], axis=-1)
    flat = (
        jnp.where(there[..., None], x, 0.0).reshape(-1, x.shape[-1])
        for x in (inputs, after.astype(jnp.float32))
    )
    return next(flat), next(flat)
