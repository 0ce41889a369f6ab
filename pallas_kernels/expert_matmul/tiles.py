"""Groups rows by the experts that they chose, in tiles whose rows all have one expert.

Each expert's rows fill whole tiles, so that a product reads one expert's weights for a tile and
needs no mask. Rows that no slot uses are in no tile.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Rows of a tile: as few as a matrix unit takes in 16 bits, and as many as the registers of the
# kernels hold next to their sums.
FEWEST_ROWS, MOST_ROWS = 16, 64


class Tiles(NamedTuple):
    """Where each row is, once for every expert that it chose.

    Attributes:
      rows: int32[X, Y], the row in each place of X tiles of Y places; T for an empty place.
      places: int32[T, C], place of each row's C choices among all X * Y; of an unused row it means
        nothing.
      experts: int32[X], the expert of each tile. Unused tiles, which are the last, repeat that of
        the last used one, so that its weights are not read again.
      used: int32[1], number of tiles with rows.
    """

    rows: jax.Array
    places: jax.Array
    experts: jax.Array
    used: jax.Array


def tile_shape(num_choices: int, num_experts: int) -> tuple[int, int]:
    """Returns the most tiles that choices of experts can take, and the places of a tile."""
    size = FEWEST_ROWS
    while size < MOST_ROWS and size * num_experts < num_choices:
        size *= 2
    # Most tiles are needed if all but one of the chosen experts have a tile for one row.
    chosen = min(num_experts, num_choices)
    return chosen + (num_choices - chosen) // size, size


def tiles_of(chosen: jax.Array, used: jax.Array, num_experts: int) -> Tiles:
    """Groups rows by expert.

    Args:
      chosen: int32[T, C], the experts of each row, all different.
      used: bool[T], whether a row belongs to a slot.
      num_experts: E.
    """
    num_rows, num_chosen = chosen.shape
    num_choices = num_rows * num_chosen
    num_tiles, size = tile_shape(num_choices, num_experts)
    # Choices of unused rows come after all others.
    expert = jnp.where(used[:, None], chosen, num_experts).reshape(-1)
    order = jnp.argsort(expert, stable=True).astype(jnp.int32)
    expert = expert[order]
    each = jnp.arange(num_experts, dtype=jnp.int32)
    # Comparing everything is one small operation. A binary search would be a loop.
    search = functools.partial(jnp.searchsorted, side="right", method="compare_all")
    ends = search(expert, each).astype(jnp.int32)
    counts = jnp.diff(ends, prepend=0)
    end_tiles = jnp.cumsum(-(-counts // size), dtype=jnp.int32)
    first, first_tile = ends - counts, end_tiles + (-counts // size)
    mine = jnp.minimum(expert, num_experts - 1)
    rank = jnp.arange(num_choices, dtype=jnp.int32) - first[mine]
    nowhere = num_tiles * size
    place = jnp.where(expert < num_experts, first_tile[mine] * size + rank, nowhere)
    rows = jnp.full(nowhere, num_rows, jnp.int32).at[place].set(order // num_chosen, mode="drop")
    places = jnp.zeros(num_choices, jnp.int32).at[order].set(place, unique_indices=True)
    tile = jnp.minimum(jnp.arange(num_tiles, dtype=jnp.int32), jnp.maximum(end_tiles[-1] - 1, 0))
    experts = jnp.minimum(search(end_tiles, tile).astype(jnp.int32), num_experts - 1)
    return Tiles(
        rows.reshape(num_tiles, size), places.reshape(chosen.shape), experts, end_tiles[-1:]
    )


def to_tiles(x: jax.Array, tiles: Tiles) -> jax.Array:
    """Returns the rows x [T, D] in their tiles, [X, Y, D], with zeros in empty places."""
    return jnp.take(x, tiles.rows, axis=0, mode="fill", fill_value=0)


def from_tiles(y: jax.Array, shares: jax.Array, tiles: Tiles) -> jax.Array:
    """Adds the results of each row's experts.

    Args:
      y: results in tiles, [X, Y, D].
      shares: float32[T, C], the factor of each choice.
      tiles: the places.

    Returns:
      [T, D] in the type of y; anything in unused rows.
    """
    flat = y.reshape(-1, y.shape[-1])
    # One after another, because the way XLA divides a sum depends on T.
    added = [
        jnp.take(flat, tiles.places[:, n], axis=0, mode="clip").astype(jnp.float32)
        * shares[:, n, None]
        for n in range(shares.shape[1])
    ]
    return functools.reduce(jnp.add, added).astype(y.dtype)
