"""Turning hidden states into logits: models do, and heads that borrow their output projection."""

import jax
import jax.numpy as jnp

from emsjax.models.shared_rows import DividedRows, Table, part_of_shard, without_padding
from emsjax.pallas_kernels.layer_matmul.api import matmul


def soft_capped(x: jax.Array, cap: float | None) -> jax.Array:
    """Keeps x between -cap and cap; returns it unchanged for None."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def logits_of(
    hidden: jax.Array,
    output: Table,
    vocab_size: int,
    *,
    bias: jax.Array | None = None,
    scale: float = 1.0,
    soft_cap: float | None = None,
) -> jax.Array:
    """Returns logits float32[W, V] of hidden states [W, E].

    If devices share the output projection, each one returns its part of the vocabulary, padded with
    -inf.

    Args:
      hidden: the states.
      output: the output projection [V, E].
      vocab_size: V.
      bias: of the logits [V]; None for none.
      scale: factor on the logits with their bias.
      soft_cap: soft cap of the logits, applied last; None for none.
    """
    divided = isinstance(output, DividedRows)
    rows = output.rows if isinstance(output, DividedRows) else output
    logits = matmul(hidden, rows, jnp.dtype(jnp.float32))
    if bias is not None:
        bias = bias.astype(jnp.float32)
        logits = logits + (part_of_shard(bias, logits.shape[1]) if divided else bias)[None]
    if scale != 1:
        logits = logits * scale
    logits = soft_capped(logits, soft_cap)
    return without_padding(logits, vocab_size) if divided else logits
