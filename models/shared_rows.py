"""What the devices that share a model exchange: sums of their parts, and rows that one of them has.

These functions run inside `jax.shard_map` over the axis `SHARDS`, see `engine.devices`.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from emsjax.models.config import Sums
from emsjax.pallas_kernels.quantised import Weights, take_rows
from emsjax.shapes import SHARDS


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DividedRows:
    """An embedding of which each device holds as many rows, the first device the first ones.

    Attributes:
      rows: [V, E], possibly with further rows that belong to no token.
    """

    rows: Weights

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the rows, [V, E]."""
        return self.rows.shape


# An embedding, to look rows up in or to turn hidden states into logits.
Table = Weights | DividedRows


def table_of(rows: Weights, *, divided: bool) -> Table:
    """Returns an embedding [V, E], of which each device may hold a part."""
    return DividedRows(rows) if divided else rows


def sum_of_shards(part: jax.Array, sums: Sums = "in any order") -> jax.Array:
    """Returns the sum of all devices' arrays, the same on each.

    In order, the parts of the first device come first, in float32. This sends as many times more as
    there are devices. Otherwise the devices may add a number's parts in an order that depends on
    its place.
    """
    if sums == "in any order":
        return jax.lax.psum(part, SHARDS)
    parts = jax.lax.all_gather(part, SHARDS, to="invarying").astype(jnp.float32)
    return functools.reduce(jnp.add, list(parts)).astype(part.dtype)


def only_on_first(array: jax.Array) -> jax.Array:
    """Returns the array on the first device, and zeros on the others."""
    first = jax.lax.axis_index(SHARDS) == 0
    return jnp.where(first, array, jnp.zeros((), array.dtype))


def look_up(table: Table, tokens: jax.Array) -> jax.Array:
    """Looks up rows of an embedding, as `take_rows`; one of the devices that share it has a row."""
    if not isinstance(table, DividedRows):
        return take_rows(table, tokens)
    count = table.rows.shape[0]
    place = tokens - jax.lax.axis_index(SHARDS) * count
    mine = (place >= 0) & (place < count)
    found = take_rows(table.rows, jnp.clip(place, 0, count - 1))
    return sum_of_shards(jnp.where(mine[..., None], found, jnp.zeros((), found.dtype)))


def part_of_shard(values: jax.Array, count: int) -> jax.Array:
    """Returns this device's `count` of values [V] that all devices have, padded with zeros."""
    padded = jnp.pad(values, (0, jax.lax.axis_size(SHARDS) * count - values.shape[0]))
    return jax.lax.dynamic_slice(padded, (jax.lax.axis_index(SHARDS) * count,), (count,))


def without_padding(logits: jax.Array, vocab_size: int) -> jax.Array:
    """Sets this device's logits [W, V / shards] that belong to no token to -inf."""
    first = jax.lax.axis_index(SHARDS) * logits.shape[1]
    tokens = first + jnp.arange(logits.shape[1], dtype=jnp.int32)
    return jnp.where(tokens[None] < vocab_size, logits, -jnp.inf)
