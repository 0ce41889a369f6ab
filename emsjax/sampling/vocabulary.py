"""Which part of the vocabulary a device has the logits of, and what it exchanges for the rest.

Everything that chooses tokens asks a `Vocabulary` for what lies across its columns: with all logits
at hand the answers are plain operations. Devices that share a model have a part each, and exchange
a few numbers for each row. This happens inside `jax.shard_map` over the axis `SHARDS`, see
`engine.devices`. All devices come to the same result, up to the order of sums that of one device.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from emsjax.sampling.blocks import BLOCK, are_bounded, first_max, has_maximum
from emsjax.shapes import SHARDS


class Vocabulary:
    """The whole vocabulary."""

    def size(self, width: int) -> int:
        """Returns V, for logits of so many columns."""
        return width

    def places(self, tokens: jax.Array, width: int) -> jax.Array:
        """Returns the column of each token among `width`; `width` for those that have none here."""
        del width
        return tokens

    def own(self, table: jax.Array, width: int) -> jax.Array:
        """Returns the columns of a table [..., V] that belong to logits of so many columns."""
        del width
        return table

    def largest(self, values: jax.Array) -> jax.Array:
        """Returns the largest of all parts' values."""
        return values

    def total(self, values: jax.Array) -> jax.Array:
        """Returns the sum of all parts' values."""
        return values

    def first_max(self, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns where each row is largest, int32[W], and whether it has a largest number."""
        tokens = first_max(rows)
        return tokens, has_maximum(rows, tokens)

    def top(self, rows: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
        """Returns the largest numbers of each row, largest first, and their tokens."""
        values, tokens = jax.lax.top_k(rows, min(count, rows.shape[1]))
        return values, tokens.astype(jnp.int32)

    def log_total(self, rows: jax.Array) -> jax.Array:
        """Returns log(sum(exp(row))) over all parts of each row, [W]."""
        return jax.nn.logsumexp(rows, axis=1)

    def at(self, values: jax.Array, tokens: jax.Array) -> jax.Array:
        """Returns the values [W, C, ...] of tokens int32[W, C], from all parts' [W, n, ...]."""
        places = self.places(tokens, values.shape[1])
        places = places.reshape(*tokens.shape, *[1] * (values.ndim - 2))
        found = jnp.take_along_axis(values, places, axis=1, mode="fill", fill_value=-jnp.inf)
        return self.largest(found)

    def fitted(self, logits: jax.Array, size: int) -> jax.Array:
        """Cuts or pads a draft model's logits [W, n] to the target's V; some have unused tokens."""
        missing = size - logits.shape[1]
        if missing <= 0:
            return logits[:, :size]
        return jnp.pad(logits, ((0, 0), (0, missing)), constant_values=-jnp.inf)

    def of_part(self, array: jax.Array) -> jax.Array:
        """Returns an array as one of which each part may have another, to begin a loop with."""
        return array

    def at_best(self, scores: jax.Array, places: jax.Array, width: int) -> jax.Array:
        """Returns the token of the part with the best score, int32[W].

        Args:
          scores: float32[W], this part's best ones.
          places: int32[W], their columns.
          width: columns of this part.
        """
        del scores, width
        return places

    def blocks(self, count: int) -> int:
        """Returns the blocks of the vocabulary, of which so many are here."""
        return count


WHOLE = Vocabulary()


@dataclass(frozen=True)
class DividedVocabulary(Vocabulary):
    """A vocabulary in equal parts of whole blocks, the last ones padded with logits of -inf.

    Attributes:
      tokens: V.
    """

    tokens: int

    def size(self, width: int) -> int:
        """Returns V."""
        del width
        return self.tokens

    def places(self, tokens: jax.Array, width: int) -> jax.Array:
        """Implements `Vocabulary.places`."""
        places = tokens - jax.lax.axis_index(SHARDS) * width
        return jnp.where((places >= 0) & (places < width), places, width)

    def own(self, table: jax.Array, width: int) -> jax.Array:
        """Implements `Vocabulary.own`; columns that belong to no token are zeros."""
        # A draft model may have fewer tokens than the table.
        missing = max(jax.lax.axis_size(SHARDS) * width - table.shape[-1], 0)
        padded = jnp.pad(table, ((0, 0),) * (table.ndim - 1) + ((0, missing),))
        first = jax.lax.axis_index(SHARDS) * width
        return jax.lax.dynamic_slice_in_dim(padded, first, width, axis=table.ndim - 1)

    def largest(self, values: jax.Array) -> jax.Array:
        """Implements `Vocabulary.largest`."""
        return jax.lax.pmax(values, SHARDS)

    def total(self, values: jax.Array) -> jax.Array:
        """Implements `Vocabulary.total`."""
        return jax.lax.psum(values, SHARDS)

    def log_total(self, rows: jax.Array) -> jax.Array:
        """Implements `Vocabulary.log_total`."""
        here = super().log_total(rows)
        largest = self.largest(here)
        return largest + jnp.log(self.total(jnp.exp(here - largest)))

    def fitted(self, logits: jax.Array, size: int) -> jax.Array:
        """Implements `Vocabulary.fitted`; the parts stay those of the draft model."""
        tokens = self._tokens(jnp.arange(logits.shape[1], dtype=jnp.int32), logits.shape[1])
        return jnp.where(tokens[None] < size, logits, -jnp.inf)

    def of_part(self, array: jax.Array) -> jax.Array:
        """Implements `Vocabulary.of_part`."""
        return jax.lax.pcast(array, (SHARDS,), to="varying")

    def first_max(self, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Implements `Vocabulary.first_max` in one exchange."""
        place = first_max(rows)
        largest = jnp.take_along_axis(rows, place[:, None], axis=1)[:, 0]
        # NaN and infinity leave no choice, whichever part has them.
        largest = jnp.where(are_bounded(rows, largest), largest, jnp.nan)
        values, tokens = self._exchange(largest, self._tokens(place, rows.shape[1]))
        best = jnp.argmax(values, axis=0)[None]
        found = jnp.take_along_axis(values, best, axis=0)[0]
        sound = (found > -jnp.inf) & (values < jnp.inf).all(axis=0)
        return jnp.take_along_axis(tokens, best, axis=0)[0], sound

    def top(self, rows: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
        """Implements `Vocabulary.top`."""
        values, places = jax.lax.top_k(rows, min(count, rows.shape[1]))
        found = self._exchange(values, self._tokens(places.astype(jnp.int32), rows.shape[1]))
        # Part after part, so that the first of equal numbers stays the first.
        values, tokens = (x.swapaxes(0, 1).reshape(rows.shape[0], -1) for x in found)
        values, order = jax.lax.top_k(values, min(count, self.tokens, values.shape[1]))
        return values, jnp.take_along_axis(tokens, order, axis=1)

    def at_best(self, scores: jax.Array, places: jax.Array, width: int) -> jax.Array:
        """Implements `Vocabulary.at_best`."""
        values, tokens = self._exchange(scores, self._tokens(places, width))
        best = jnp.argmax(values, axis=0)[None]
        return jnp.take_along_axis(tokens, best, axis=0)[0]

    def blocks(self, count: int) -> int:
        """Implements `Vocabulary.blocks`."""
        del count
        return -(-self.tokens // BLOCK)

    def _tokens(self, places: jax.Array, width: int) -> jax.Array:
        return places + jax.lax.axis_index(SHARDS) * width

    def _exchange(self, values: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns all parts' values float32[...] and tokens int32[...], [parts, ...] each."""
        sent = jnp.stack([jax.lax.bitcast_convert_type(values, jnp.int32), tokens])
        found = jax.lax.all_gather(sent, SHARDS, to="invarying")
        return jax.lax.bitcast_convert_type(found[:, 0], jnp.float32), found[:, 1]
