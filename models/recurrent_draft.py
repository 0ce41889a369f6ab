"""A draft without a cache: it goes on from the target's own last hidden state.

One cell, used again for each draft token: it mixes the hidden state with the embedding of the
token that was chosen from it, and guesses the next hidden state, whose likeliest token comes next
(MLP speculators, arXiv 2404.19124; recurrent drafter, arXiv 2403.09919). Embedding and output
projection are the target's. The output knows only the most frequent tokens (FR-Spec,
arXiv 2502.14856): most of a draft token's cost is in there.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from emsjax.models.layers import Linear, RMSNorm
from emsjax.pallas_kernels.products import matmul


@dataclass(frozen=True)
class RecurrentConfig:
    """The sizes of a recurrent draft.

    Attributes:
      hidden_size: D, the target's.
      intermediate_size: width of each feed-forward layer.
      num_layers: feed-forward layers of the cell.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int


class Shared(NamedTuple):
    """What the draft has from its target.

    Attributes:
      embedding: [V, D], of all tokens.
      head: [Vd, D], the output projection of the tokens it can guess.
      token_ids: int32[Vd], which those are.
    """

    embedding: jax.Array
    head: jax.Array
    token_ids: jax.Array


class GatedMLP(nnx.Module):
    """x + down(silu(gate) * up) of the normalised x."""

    def __init__(self, config: RecurrentConfig, *, rngs: nnx.Rngs):
        width = config.intermediate_size
        self.norm = RMSNorm(config.hidden_size, 1e-5)
        self.up = Linear(config.hidden_size, 2 * width, bias=False, rngs=rngs)
        self.down = Linear(width, config.hidden_size, bias=False, rngs=rngs)
        self.down.kernel[...] *= 0.1

    def __call__(self, x: jax.Array) -> jax.Array:
        """[W, D] to [W, D]."""
        gate, up = jnp.split(self.up(self.norm(x)), 2, axis=-1)
        return x + self.down(jax.nn.silu(gate) * up)


class RecurrentDraft(nnx.Module):
    """The cell, and how sure it is of its guesses."""

    def __init__(self, config: RecurrentConfig, *, rngs: nnx.Rngs):
        width = config.hidden_size
        self.config = config
        self.hidden_norm = RMSNorm(width, 1e-5)
        self.token_norm = RMSNorm(width, 1e-5)
        self.mix = Linear(2 * width, width, bias=False, rngs=rngs)
        self.layers = nnx.List([GatedMLP(config, rngs=rngs) for _ in range(config.num_layers)])
        self.judge_norm = RMSNorm(width, 1e-5)
        self.judge = Linear(width + 2, 1, bias=True, rngs=rngs)

    def __call__(self, hidden: jax.Array, embedded: jax.Array) -> jax.Array:
        """The next hidden state [W, D], of the one and the token that was chosen from it."""
        both = [self.hidden_norm(hidden), self.token_norm(embedded)]
        x = hidden + self.mix(jnp.concatenate(both, axis=-1))
        for layer in self.layers:
            x = layer(x)
        return x

    def logits(self, hidden: jax.Array, shared: Shared) -> jax.Array:
        """float32[W, Vd], of the tokens `shared.token_ids`."""
        return matmul(hidden, shared.head, jnp.dtype(jnp.float32))

    def confidence(self, hidden: jax.Array, probability: jax.Array) -> jax.Array:
        """How likely the guess is what the target chooses, as log-odds float32[W].

        A discriminator in the manner of ELECTRA (arXiv 2003.10555): a rejected guess is a replaced
        token.

        Args:
          hidden: [W, D], the guess was chosen from it.
          probability: float32[W], what the draft gives the guess.
        """
        p = jnp.clip(probability, 1e-4, 1 - 1e-4)[:, None]
        odds = jnp.concatenate([jnp.log(p), jnp.log1p(-p)], axis=1).astype(hidden.dtype)
        seen = jnp.concatenate([self.judge_norm(hidden), odds], axis=1)
        return self.judge(seen)[:, 0].astype(jnp.float32)
