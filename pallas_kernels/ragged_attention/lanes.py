"""Where each head lies in the rows of 128 lanes of a cached token, for kernels that read rows.

A head narrower than 128 shares its row with others. A head that is wider, or that crosses a border
between rows, takes two rows. The kernel never cuts or shifts a row. Instead, queries are laid out
at the lanes of their key head with zeros in all others, so that their product with whole rows is
the product with that head alone. From a product with whole rows of values, only the lanes of the
value head are kept.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from emsjax.pallas_kernels.kv_rows import LANES


class Place(NamedTuple):
    """The rows and the first lane of a head in a cached token.

    Attributes:
      first: the head's first row.
      end: the row after its last one.
      lane: the lane of the first row where it starts.
    """

    first: int
    end: int
    lane: int

    def rows(self) -> range:
        """Returns all rows of the head."""
        return range(self.first, self.end)


def place_of(number: int, head_dim: int) -> Place:
    """Returns the place of key head `number`, or of value head `number - K`."""
    start = number * head_dim
    return Place(start // LANES, -(-(start + head_dim) // LANES), start % LANES)


def places(num_kv_heads: int, head_dim: int) -> tuple[list[Place], list[Place]]:
    """Returns the places of all key heads and of all value heads."""
    every = [place_of(number, head_dim) for number in range(2 * num_kv_heads)]
    return every[:num_kv_heads], every[num_kv_heads:]


class Heads(NamedTuple):
    """Consecutive heads that occupy the same rows, so that one product serves them all.

    Attributes:
      first: number of the first head.
      end: number of the last head, plus one.
      rows: their rows in a cached token.
    """

    first: int
    end: int
    rows: range


def together(heads: list[Place], packing: int) -> list[list[Heads]]:
    """Collects heads that occupy the same rows, in groups whose rows are loaded together.

    A load fetches 32-bit words, which hold `packing` rows: four of 8 bits, two of 16 or one of 32.
    """
    found, first = [], 0
    for rows, group in itertools.groupby(place.rows() for place in heads):
        end = first + len(list(group))
        found.append(Heads(first, end, rows))
        first = end
    return [list(g) for _, g in itertools.groupby(found, lambda x: x.rows.start // packing)]


def width(num_kv_heads: int, head_dim: int) -> int:
    """Returns the most lanes that the rows of any head span, a multiple of 128."""
    keys, values = places(num_kv_heads, head_dim)
    return LANES * max(place.end - place.first for place in keys + values)


def spread_queries(q: jax.Array, num_kv_heads: int) -> jax.Array:
    """Lays out queries [T, N, H] at the lanes of their key heads, [T, K, G, width]."""
    num_rows, _, head_dim = q.shape
    by_head = q.reshape(num_rows, num_kv_heads, -1, head_dim)
    lanes = width(num_kv_heads, head_dim)
    if lanes == head_dim:
        return by_head
    keys, _ = places(num_kv_heads, head_dim)
    if LANES % head_dim == 0:
        # One operation for all heads: each operation costs a TPU two microseconds, however small.
        everywhere = jnp.concatenate([by_head] * (LANES // head_dim), axis=-1)
        own = [[key.lane <= lane < key.lane + head_dim for lane in range(LANES)] for key in keys]
        return jnp.where(jnp.asarray(own)[None, :, None], everywhere, 0)

    def spread(head: int, lane: int) -> jax.Array:
        room = (lane, lanes - head_dim - lane)
        return jnp.pad(by_head[:, head], ((0, 0), (0, 0), room))

    return jnp.stack([spread(head, key.lane) for head, key in enumerate(keys)], axis=1)


def gather_values(out: jax.Array, head_dim: int) -> jax.Array:
    """Extracts each value head's lanes from [tiles, K, M, width] as [tiles, K, M, H]."""
    if out.shape[-1] == head_dim:
        return out
    _, values = places(out.shape[1], head_dim)
    if LANES % head_dim == 0:
        found, *others = jnp.split(out, LANES // head_dim, axis=-1)
        for number, part in enumerate(others, start=1):
            own = jnp.asarray([value.lane == number * head_dim for value in values])
            found = jnp.where(own[None, :, None, None], part, found)
        return found
    heads = [
        out[:, head, :, value.lane : value.lane + head_dim] for head, value in enumerate(values)
    ]
    return jnp.stack(heads, axis=1)
