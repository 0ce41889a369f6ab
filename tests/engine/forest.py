"""A drafter of random trees, some of whose paths are right."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emsjax.engine.draft import ROOT, Draft
from emsjax.engine.drafter import Stateless
from emsjax.engine.state import DecodeState
from emsjax.engine.tree import tree_of


@dataclass(frozen=True)
class Forest(Stateless):
    """Grows a random tree in every slot; the right token is among the siblings most of the time.

    Attributes:
      texts: int32[J, S], the text of each job, prompt included. The first token of a prompt minus
        `first` is the number of its job.
      first: see `texts`.
      vocab_size: V.
      seed: of the trees.
      draft_length: k.
    """

    texts: np.ndarray = field(repr=False)
    first: int
    vocab_size: int
    seed: int = 0
    draft_length: int = 7

    @property
    def weights(self) -> Any:
        """The texts and the seed, so that one program serves for all of them."""
        return self.texts, np.int32(self.seed)

    def propose(self, state: DecodeState, weights: Any, worth: Any) -> tuple[Draft, Any]:
        """Grows trees that depend on nothing but the slot, its length and the seed."""
        del worth
        texts, seed = weights
        num_slots, k = state.lens.shape[0], self.draft_length
        slots = jnp.arange(num_slots, dtype=jnp.int32)

        def draw(index: Any, most: Any) -> jax.Array:
            keys = jax.vmap(
                lambda slot, lens: jax.random.fold_in(
                    jax.random.fold_in(jax.random.key(seed + 100 * index), slot), lens
                )
            )(slots, state.lens)
            return jax.vmap(lambda key: jax.random.randint(key, (k,), 0, 1 << 20))(keys) % most

        place = jnp.arange(k, dtype=jnp.int32)[None]
        # About half of the guesses follow one of the last two, so that some paths are long.
        parents = jnp.where(draw(0, 2) == 0, draw(1, place + 1) - 1, place - 1 - draw(2, 2))
        parents = jnp.maximum(parents, ROOT).astype(jnp.int32)
        earlier = (parents[:, :, None] == parents[:, None]) & (place[:, None] < place[..., None])
        sibling = earlier.sum(axis=2)
        blank = jnp.zeros((num_slots, k), jnp.int32)
        tree = tree_of(Draft(blank, state.lens, parents=parents))
        assert tree is not None
        job = jnp.clip(state.tokens[:, 0] - self.first, 0, len(texts) - 1)
        columns = state.lens[:, None] + tree.depths[:, 1:] - 1
        columns = jnp.minimum(columns, texts.shape[1] - 1)
        truth = texts[job[:, None], columns]
        # Each parent has a sibling number that is right. Without that many children, none is.
        right = jnp.take_along_axis(draw(3, 2), jnp.maximum(parents, 0), axis=1)
        tokens = (truth + sibling - right) % self.vocab_size
        lens = draw(4, k + 1)[:, 0]
        lens = jnp.where(state.live, lens, 0).astype(jnp.int32)
        confidence = (1 + draw(5, 98)).astype(jnp.float32) / 100
        return Draft(tokens.astype(jnp.int32), lens, confidence, parents=parents), ()
