"""A draft model without a cache, which continues from the target's last hidden state.

The same cell runs for each draft token. It mixes the hidden state with the embedding of the token
chosen from it, and guesses the next hidden state, from which the next token is chosen (MLP
speculators, arXiv 2404.19124; recurrent drafter, arXiv 2403.09919). The embedding and the output
projection are the target's. The output projection covers only the most frequent tokens (FR-Spec,
arXiv 2502.14856), because it is most of a draft token's cost.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from emsjax.models.linear import Linear
from emsjax.models.norms import RMSNorm
from emsjax.models.shared_rows import Table, look_up
from emsjax.pallas_kernels.layer_matmul.api import matmul
from emsjax.pallas_kernels.quantised import Weights


@dataclass(frozen=True)
class RecurrentConfig:
    """The sizes of a recurrent draft.

    Attributes:
      hidden_size: D of the target.
      intermediate_size: width of each feed-forward layer.
      num_layers: number of feed-forward layers in the cell.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int


class Shared(NamedTuple):
    """The arrays that the draft shares with its target.

    Attributes:
      embedding: [V, D], the embedding of all tokens, which devices may share.
      head: [Vd, D], the output projection of the tokens that the draft can guess.
      token_ids: int32[Vd], the ids of these tokens.
    """

    embedding: Table
    head: Weights
    token_ids: jax.Array

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Returns the embedding of tokens int32[W], [W, D]."""
        return look_up(self.embedding, tokens)


class GatedMLP(nnx.Module):
    """Computes x + down(silu(gate) * up), with gate and up projected from the normalised x."""

    def __init__(self, config: RecurrentConfig, *, rngs: nnx.Rngs):
        width = config.intermediate_size
        self.norm = RMSNorm(config.hidden_size, 1e-5)
        self.up = Linear(config.hidden_size, 2 * width, bias=False, rngs=rngs)
        self.down = Linear(width, config.hidden_size, bias=False, rngs=rngs)
        self.down.kernel[...] *= 0.1

    def __call__(self, x: jax.Array) -> jax.Array:
        """Turns x [W, D] into [W, D]."""
        gate, up = jnp.split(self.up(self.norm(x)), 2, axis=-1)
        return x + self.down(jax.nn.silu(gate) * up)


class RecurrentDraft(nnx.Module):
    """The cell that guesses one token after another."""

    def __init__(self, config: RecurrentConfig, *, rngs: nnx.Rngs):
        width = config.hidden_size
        self.config = config
        self.hidden_norm = RMSNorm(width, 1e-5)
        self.token_norm = RMSNorm(width, 1e-5)
        self.mix = Linear(2 * width, width, bias=False, rngs=rngs)
        self.layers = nnx.List([GatedMLP(config, rngs=rngs) for _ in range(config.num_layers)])

    def __call__(self, hidden: jax.Array, embedded: jax.Array) -> jax.Array:
        """Returns the next hidden state [W, D].

        Args:
          hidden: [W, D], the last hidden state.
          embedded: [W, D], the embedding of the token chosen from it.
        """
        both = [self.hidden_norm(hidden), self.token_norm(embedded.astype(hidden.dtype))]
        x = hidden + self.mix(jnp.concatenate(both, axis=-1))
        for layer in self.layers:
            x = layer(x)
        return x

    def logits(self, hidden: jax.Array, shared: Shared) -> jax.Array:
        """Returns logits float32[W, Vd] for the tokens `shared.token_ids`."""
        return matmul(hidden, shared.head, jnp.dtype(jnp.float32))
