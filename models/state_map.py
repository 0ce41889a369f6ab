"""The trained part of a draft with the target's own last layers: it guesses their next input."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from emsjax.models.linear import Linear
from emsjax.models.norms import RMSNorm


@dataclass(frozen=True)
class StateMapConfig:
    """The sizes of a map, and of the target that it was made for.

    Attributes:
      hidden_size: D of the target.
      embedding_size: E of the target.
      vocab_size: V of the target.
      num_layers: L of the target.
      first_layer: the layer whose input is guessed; the target runs from there on.
      width: width of the gated feed-forward part; 0 for a map that is linear.
    """

    hidden_size: int
    embedding_size: int
    vocab_size: int
    num_layers: int
    first_layer: int
    width: int


class SplitMLP(nnx.Module):
    """A gated feed-forward layer of states and embedding, each normalised; it starts at zero."""

    def __init__(self, config: StateMapConfig, *, rngs: nnx.Rngs):
        width = config.hidden_size
        self.state_norm = RMSNorm(width, 1e-5)
        self.token_norm = RMSNorm(config.embedding_size, 1e-5)
        both = width + config.embedding_size
        self.up = Linear(both, 2 * config.width, bias=False, rngs=rngs)
        self.down = Linear(config.width, width, bias=False, rngs=rngs)
        self.down.kernel[...] *= 0

    def __call__(self, states: jax.Array, embedded: jax.Array) -> jax.Array:
        """Turns states [W, D] and embedding [W, E] into [W, D]."""
        both = jnp.concatenate([self.state_norm(states), self.token_norm(embedded)], axis=-1)
        gate, up = jnp.split(self.up(both), 2, axis=-1)
        return self.down(jax.nn.silu(gate) * up)


class StateMap(nnx.Module):
    """Guesses a layer's input for a token.

    The linear part can be solved for. The feed-forward part starts at zero and is trained.
    """

    def __init__(self, config: StateMapConfig, *, rngs: nnx.Rngs):
        self.config = config
        both = config.hidden_size + config.embedding_size
        self.linear = Linear(both, config.hidden_size, bias=True, rngs=rngs)
        self.mlp = SplitMLP(config, rngs=rngs) if config.width else None

    def __call__(self, states: jax.Array, embedded: jax.Array) -> jax.Array:
        """Returns the next states [W, D].

        Args:
          states: [W, D], the layer's input for the token before.
          embedded: [W, E], the embedding of the token.
        """
        parts = [states, embedded.astype(states.dtype)]
        guess = self.linear(jnp.concatenate(parts, axis=-1))
        return guess if self.mlp is None else guess + self.mlp(*parts)

    def ahead(self, states: jax.Array, embedded: jax.Array) -> jax.Array:
        """Returns the states [n, W, D] of the next n tokens, each from the one before.

        Args:
          states: [W, D], of the token before the first.
          embedded: [n, W, E], of the tokens.
        """
        found = []
        for token in embedded:
            states = self(states, token)
            found.append(states)
        return jnp.stack(found)
