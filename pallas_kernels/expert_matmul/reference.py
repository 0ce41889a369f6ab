"""Products with experts as one product with a layer's weights after another, a tile at a time.

XLA's own `ragged_dot` multiplies every row with every expert on CPU and GPU. On a TPU it reads only
the experts that were chosen, but first copies all experts of the layer out of their stack.
"""

import jax
import jax.numpy as jnp

from emsjax.pallas_kernels.backends import target_platform
from emsjax.pallas_kernels.expert_matmul.tiles import Tiles
from emsjax.pallas_kernels.layer_matmul.api import layer_matmul
from emsjax.pallas_kernels.quantised import Grouped


def expert_matmul(
    x: jax.Array, kernels: jax.Array | Grouped, layer: jax.Array, tiles: Tiles, dtype: jnp.dtype
) -> jax.Array:
    """See `api.expert_matmul`."""
    _, num_experts, num_out, _ = kernels.shape
    stack = jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), kernels)

    def multiply(tile: jax.Array, out: jax.Array) -> jax.Array:
        rows = jax.lax.dynamic_index_in_dim(x, tile, keepdims=False)
        number = layer * num_experts + tiles.experts[tile]
        product = layer_matmul(rows, stack, layer=number, dtype=dtype)
        return jax.lax.dynamic_update_index_in_dim(out, product, tile, 0)

    # A GPU must report to the host after each turn of a loop whose number of turns is not known.
    last = len(x) if target_platform() == "gpu" else tiles.used[0]
    empty = jnp.zeros((*x.shape[:2], num_out), dtype)
    return jax.lax.fori_loop(0, last, multiply, empty)
