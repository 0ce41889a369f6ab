"""Hidden transfer: the states of the next tokens, guessed all at once from one state.

One matrix a place turns a layer's input for the last token that the target has read into a pseudo
state, which stands for the same layer's input for the token that many places later. The pseudo
states run through the rest of the target's layers together. They attend to the target's K/V and to
the pseudo states of earlier places, which refines them, and the target's output projection reads
them.

That much is in the abstracts of Hidden Transfer (arXiv 2404.12022) and of FIRP (arXiv 2410.20488),
the later text of the same authors: linear maps at an inner layer, and pseudo states that take part
in all following layers and so come closer to real ones. What is added here is not from them: all
places begin at the same layer, the maps have a bias and begin as least-squares solutions, and the
loss is that of the drafts with the target's own layers. The papers also run pseudo states behind
every draft token in the pass that verifies it, which multiplies the rows of the batch. Here they
run in a pass of their own, behind the last accepted token only.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from emsjax.models.linear import Linear


@dataclass(frozen=True)
class TransferConfig:
    """The sizes of the maps, and of the target that they were made for.

    Attributes:
      hidden_size: D of the target.
      embedding_size: E of the target.
      vocab_size: V of the target.
      num_layers: L of the target.
      first_layer: the layer whose inputs are guessed; the target runs from there on.
      places: K, how many tokens ahead.
    """

    hidden_size: int
    embedding_size: int
    vocab_size: int
    num_layers: int
    first_layer: int
    places: int


class HiddenTransfer(nnx.Module):
    """Guesses a layer's inputs for the next K tokens, without knowing any of them."""

    def __init__(self, config: TransferConfig, *, rngs: nnx.Rngs):
        self.config = config
        width = config.hidden_size
        self.linear = Linear(width, config.places * width, bias=True, rngs=rngs)

    def __call__(self, states: jax.Array) -> jax.Array:
        """Turns states [W, D] of the last token into pseudo states [W, K, D] of those after it."""
        return self.linear(states).reshape(states.shape[0], self.config.places, -1)

    def ahead(self, states: jax.Array, embedded: jax.Array) -> jax.Array:
        """Returns the pseudo states [n, W, D] of the next n tokens, at most K.

        Args:
          states: [W, D], of the last token.
          embedded: [n, W, E], of the tokens themselves, which are not used.
        """
        return jnp.moveaxis(self(states), 1, 0)[: embedded.shape[0]]
