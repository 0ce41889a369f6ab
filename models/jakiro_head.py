"""Jakiro heads (arXiv 2502.06282): EAGLE-1's layer with two experts, and two guesses a row.

The feed-forward part of the layer is two experts, which both run. Their results are mixed twice,
with shares from two pairs of logits of one router:

- The sum of both, each times its share, guesses the next token, and the next row continues from it
  as in EAGLE-1.
- The contrast, which is the expert with the larger share minus the other one, each times its share,
  guesses the token after the next. A draft ends with it, and so saves a pass.

This is what the authors' code does (haiduo/Jakiro). A row reads the target's final state of a token
and the embedding of the token after it, through a linear map.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from emsjax.models.config import DecoderConfig, Rope
from emsjax.models.eagle_head import EagleConfig, EagleHead, FirstLayer
from emsjax.models.layer_context import LayerContext
from emsjax.models.linear import Linear
from emsjax.models.mlp import MLP
from emsjax.pallas_kernels.int8_cache import Cache

# As in EAGLE-1, whatever the target's is.
_ROPE_BASE, _NORM_EPS = 10_000.0, 1e-5


@dataclass(frozen=True)
class JakiroConfig:
    """The sizes of a head.

    Attributes:
      hidden_size: D, the width of the target's final states.
      intermediate_size: width of each expert.
      num_heads: query heads.
      num_kv_heads: key/value heads.
      head_dim: H.
      vocab_size: V of the target.
    """

    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int

    @property
    def eagle(self) -> EagleConfig:
        """The form of the EAGLE-1 head around the experts."""
        exponents = range(0, 2 * (self.head_dim // 2), 2)
        frequencies = tuple(_ROPE_BASE ** (-each / self.head_dim) for each in exponents)
        layers = DecoderConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_layers=1,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            max_positions=1,
            norm="rms",
            norm_eps=_NORM_EPS,
            activation="silu",
            gated=True,
            rope=Rope(frequencies),
        )
        return EagleConfig(layers, fused=0, target_size=self.hidden_size, head_size=0, bias=True)


class TwoExperts(nnx.Module):
    """Two feed-forward layers, whose results are mixed in two ways."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        self.gate = Linear(config.hidden_size, 4, bias=False, rngs=rngs)
        self.experts = nnx.List([MLP(config, rngs=rngs) for _ in range(2)])

    def __call__(self, x: jax.Array, context: LayerContext) -> jax.Array:
        """Turns x [T, D] into the sum and the contrast of both experts, side by side [T, 2D]."""
        first, second = (expert(x, context) for expert in self.experts)
        logits = self.gate(x).astype(jnp.float32)
        of_sum, of_contrast = (jax.nn.softmax(part) for part in jnp.split(logits, 2, axis=1))
        mixed = of_sum[:, :1] * first + of_sum[:, 1:] * second
        less = of_contrast[:, :1] * first - of_contrast[:, 1:] * second
        contrast = jnp.where(of_contrast[:, :1] > of_contrast[:, 1:], less, -less)
        return jnp.concatenate([mixed, contrast], axis=1).astype(x.dtype)


class JakiroLayer(FirstLayer):
    """EAGLE-1's layer, whose result is twice as wide: a state for each of the two guesses."""

    def __init__(self, config: EagleConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs, mlp=TwoExperts)

    def __call__(
        self, states: jax.Array, embedded: jax.Array, cache: Cache, context: LayerContext
    ) -> tuple[jax.Array, Cache]:
        """Returns states [T, 2D] and the cache after this layer."""
        states, cache = self.attended(states, embedded, cache, context)
        both = jnp.concatenate([states, states], axis=1)
        return both + self.mlp(self.mlp_norm(states), context), cache


class JakiroHead(EagleHead):
    """A head that guesses with the target's output projection."""

    first_layer: ClassVar[type[FirstLayer]] = JakiroLayer

    def __init__(
        self, config: JakiroConfig, *, rngs: nnx.Rngs, dtype: jax.typing.DTypeLike = jnp.float32
    ):
        """Makes a head that continues from nearly what it reads.

        Args:
          config: its sizes.
          rngs: for the weights, which are float32 until a checkpoint replaces them.
          dtype: type of the activations.
        """
        super().__init__(config.eagle, rngs=rngs, dtype=dtype)
        width = config.hidden_size
        self.fc.kernel[:, width:] *= 0.1
        self.fc.kernel[:, width:] += jnp.eye(width)
        for part in (self.first.attention.out, *(expert.down for expert in self.first.mlp.experts)):
            part.kernel[...] *= 0.1

    def run_layers(
        self, states: jax.Array, embedded: jax.Array, cache: Any, context: LayerContext
    ) -> tuple[jax.Array, Any]:
        """Returns the states [T, 2D] of both guesses of each row, and the cache.

        Args:
          states: [T, D], the target's final states; or [T, 2D] from an earlier call.
          embedded: [T, D], the embedding of the token after each row.
          cache: what `context` writes and attends to.
          context: what the layer reads besides.
        """
        read = states[:, : self.config.layers.hidden_size]
        return super().run_layers(read, embedded, cache, context)
