"""Heads in rows of 128 lanes: where in a cached token a head lies, for kernels that read rows.

A head narrower than 128 shares its row with others; one that is wider or lies across a border
takes two. Queries are laid out alike, zeros elsewhere, so that their product with whole rows is
the product with the head alone; of a product with whole rows of values only the head's own lanes
are taken. No row is ever cut or shifted in the kernel.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from emsjax.pallas_kernels.kv_layout import LANES


class Place(NamedTuple):
    """Where a head's numbers lie in a token of the cache.

    Attributes:
      first: its first row.
      end: the row after its last.
      lane: where in the first row it starts.
    """

    first: int
    end: int
    lane: int

    def rows(self) -> range:
        """The rows that it touches."""
        return range(self.first, self.end)


def place_of(number: int, head_dim: int) -> Place:
    """The place of key head `number`, or of value head `number - K`."""
    start = number * head_dim
    return Place(start // LANES, -(-(start + head_dim) // LANES), start % LANES)


def places(num_kv_heads: int, head_dim: int) -> tuple[list[Place], list[Place]]:
    """The places of all key heads and of all value heads."""
    every = [place_of(number, head_dim) for number in range(2 * num_kv_heads)]
    return every[:num_kv_heads], every[num_kv_heads:]


class Heads(NamedTuple):
    """Consecutive heads in the same rows: one product serves them.

    Attributes:
      first: number of the first.
      end: past the number of the last.
      rows: of a cached token.
    """

    first: int
    end: int
    rows: range


def together(heads: list[Place], packing: int) -> list[list[Heads]]:
    """Heads in the same rows, in groups whose rows begin in the same word.

    `packing` rows of 16 bits, two, lie in words of 32 and are loaded together.
    """
    found, first = [], 0
    for rows, group in itertools.groupby(place.rows() for place in heads):
        end = first + len(list(group))
        found.append(Heads(first, end, rows))
        first = end
    return [list(g) for _, g in itertools.groupby(found, lambda x: x.rows.start // packing)]


def width(num_kv_heads: int, head_dim: int) -> int:
    """Lanes of the rows that any one head touches: a multiple of 128."""
    keys, values = places(num_kv_heads, head_dim)
    return LANES * max(place.end - place.first for place in keys + values)


def spread_queries(q: jax.Array, num_kv_heads: int) -> jax.Array:
    """Queries [T, N, H] at the lanes of their key heads, [T, K, G, width]."""
    num_rows, _, head_dim = q.shape
    by_head = q.reshape(num_rows, num_kv_heads, -1, head_dim)
    lanes = width(num_kv_heads, head_dim)
    if lanes == head_dim:
        return by_head
    keys, _ = places(num_kv_heads, head_dim)

    def spread(head: int, lane: int) -> jax.Array:
        room = (lane, lanes - head_dim - lane)
        return jnp.pad(by_head[:, head], ((0, 0), (0, 0), room))

    return jnp.stack([spread(head, key.lane) for head, key in enumerate(keys)], axis=1)


def gather_values(out: jax.Array, head_dim: int) -> jax.Array:
    """Each head's own lanes of [tiles, K, M, width], [tiles, K, M, H]."""
    if out.shape[-1] == head_dim:
        return out
    _, values = places(out.shape[1], head_dim)
    heads = [
        out[:, head, :, value.lane : value.lane + head_dim] for head, value in enumerate(values)
    ]
    return jnp.stack(heads, axis=1)
