"""The start of guessed states: the linear map that is closest to the target's own states.

For a state map, a layer's input for a token is regressed on its input for the token before and on
the token's embedding; for hidden transfer, its inputs for the next tokens on the one before them.
The solution is exact, and it takes as long as the target takes to read the texts.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from emsjax.models.linear import Linear
from emsjax.train.state_loss import Frozen
from emsjax.train.whole_texts import WholeTexts, read_whole

# Penalty on the squared weights of inputs that have a mean square of 1.
RIDGE = 1e-3


# Of a batch that the target reads: inputs [N, in + 1] and outputs [N, out] of the regression, 0
# where there are none. The last input is 1.
Pairs = Callable[[Any, Frozen, WholeTexts], tuple[jax.Array, jax.Array]]


def solve(
    linear: Linear, pairs: Pairs, target_def: Any, frozen: Frozen, batches: Iterable[WholeTexts]
) -> None:
    """Sets a linear map with a bias.

    Args:
      linear: the map; it is changed.
      pairs: returns what it shall turn into what.
      target_def: the target's definition.
      frozen: its parameters.
      batches: texts.
    """

    @jax.jit
    def moments(frozen: Frozen, texts: WholeTexts, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
        inputs, outputs = pairs(nnx.merge(target_def, frozen.target), frozen, texts)
        inputs = inputs * scale[None]
        with jax.default_matmul_precision("highest"):
            return inputs.T @ inputs, inputs.T @ outputs

    num_out, width = linear.kernel.shape[0], linear.kernel.shape[1] + 1
    scale = np.ones(width, np.float32)
    square, product = np.zeros((width, width)), np.zeros((width, num_out))
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
    linear.kernel[...] = jnp.asarray(weights[:-1].T, jnp.float32)
    assert linear.bias is not None
    linear.bias[...] = jnp.asarray(weights[-1], jnp.float32)


def pairs(
    target: Any, frozen: Frozen, texts: WholeTexts, *, layer: int, places: int
) -> tuple[jax.Array, jax.Array]:
    """Returns what a state map learns: inputs [N, D + E + 1] and outputs [N, D], see `Pairs`.

    Args:
      target: the target.
      frozen: what the draft shares with it.
      texts: a batch.
      layer: the layer whose inputs are guessed.
      places: at least the tokens of the longest output.
    """
    reading = read_whole(target, texts, layer, places + 1)
    before, after = reading.inner[:, :-1], reading.inner[:, 1:]
    embedded = frozen.shared.embed(reading.outputs[:, :-1])
    there = jnp.arange(places, dtype=jnp.int32)[None] < reading.counts[:, None]
    return _flat([before, embedded], [after], there)


def pairs_ahead(
    target: Any, frozen: Frozen, texts: WholeTexts, *, layer: int, places: int, ahead: int
) -> tuple[jax.Array, jax.Array]:
    """Returns what hidden transfer learns: inputs [N, D + 1] and outputs [N, K * D], see `Pairs`.

    Args:
      target: the target.
      frozen: not used.
      texts: a batch.
      layer: the layer whose inputs are guessed.
      places: at least the tokens of the longest output.
      ahead: K, for how many tokens.
    """
    del frozen
    reading = read_whole(target, texts, layer, places + ahead)
    after = [reading.inner[:, step : step + places] for step in range(1, ahead + 1)]
    # Places from which a text is long enough for all K.
    there = jnp.arange(places, dtype=jnp.int32)[None] + ahead <= reading.counts[:, None]
    return _flat([reading.inner[:, :places]], after, there)


def _flat(
    inputs: list[jax.Array], outputs: list[jax.Array], there: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the inputs side by side with a 1, and the outputs; 0 where there are none."""
    ones = jnp.ones((*there.shape, 1), jnp.float32)

    def rows(parts: list[jax.Array]) -> jax.Array:
        wide = jnp.concatenate([x.astype(jnp.float32) for x in parts], axis=-1)
        return jnp.where(there[..., None], wide, 0.0).reshape(-1, wide.shape[-1])

    return rows([*inputs, ones]), rows(outputs)
