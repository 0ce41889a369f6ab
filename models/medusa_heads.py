"""Medusa heads (arXiv 2401.10774): each guesses a token further ahead, all from one hidden state.

Head g of G guesses the token g places after the one that the target chooses itself, from the
target's final hidden state, and knows none of the tokens in between.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from emsjax.models.linear import Linear
from emsjax.pallas_kernels.layer_matmul.api import matmul


@dataclass(frozen=True)
class MedusaConfig:
    """The form of the heads.

    Attributes:
      hidden_size: D of the target.
      num_heads: G.
      num_layers: residual layers in each head.
      head_size: Vd, the number of tokens that the heads can guess.
      bias: whether the layers have biases.
      one_output: whether all heads have the same output projection.
    """

    hidden_size: int
    num_heads: int
    num_layers: int
    head_size: int
    bias: bool
    one_output: bool = False


class MedusaHead(nnx.Module):
    """The layers of a head, before its output projection."""

    def __init__(self, config: MedusaConfig, *, rngs: nnx.Rngs):
        width = config.hidden_size
        self.layers = nnx.List(
            [Linear(width, width, bias=config.bias, rngs=rngs) for _ in range(config.num_layers)]
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Turns x [W, D] into [W, D]."""
        for layer in self.layers:
            x = x + jax.nn.silu(layer(x))
        return x


class MedusaHeads(nnx.Module):
    """All heads of a target."""

    def __init__(self, config: MedusaConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.heads = nnx.List([MedusaHead(config, rngs=rngs) for _ in range(config.num_heads)])
        outputs = 1 if config.one_output else config.num_heads
        sizes = config.hidden_size, config.head_size
        self.outputs = nnx.List([Linear(*sizes, bias=False, rngs=rngs) for _ in range(outputs)])

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Returns logits float32[B, G, Vd] of all heads for hidden states [B, D]."""
        outputs = [*self.outputs] * (len(self.heads) // len(self.outputs))
        found = [
            matmul(head(hidden), output.weights, jnp.dtype(jnp.float32))
            for head, output in zip(self.heads, outputs, strict=True)
        ]
        return jnp.stack(found, axis=1)
