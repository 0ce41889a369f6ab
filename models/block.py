"""One layer of the decoder: attention and feed-forward, with their norms and residuals."""

import jax
from flax import nnx

from emsjax.models.attention import Attention
from emsjax.models.config import DecoderConfig, Experts
from emsjax.models.experts import ExpertMLP
from emsjax.models.layer_context import LayerContext
from emsjax.models.mlp import MLP
from emsjax.models.norms import norm, normed
from emsjax.models.residual import total_and_norm
from emsjax.pallas_kernels.int8_cache import Cache


class Block(nnx.Module):
    """One layer: attention and feed-forward, each with a norm and a residual."""

    def __init__(self, config: DecoderConfig, experts: Experts | None, *, rngs: nnx.Rngs):
        width, place = config.hidden_size, config.norm_place
        first, last = place != "after", place in ("after", "around")
        self.attention_norm = norm(config, width) if first else None
        self.attention = Attention(config, rngs=rngs)
        self.attention_out_norm = norm(config, width) if last else None
        self.mlp_norm = norm(config, width) if first and not config.one_norm else None
        self.mlp = ExpertMLP(config, experts, rngs=rngs) if experts else MLP(config, rngs=rngs)
        self.mlp_out_norm = norm(config, width) if last else None
        self.of_sum = place == "residual"
        self.parallel, self.one_norm = config.parallel, config.one_norm
        self.residual_scale = config.residual_scale
        # Whether sums may wait for the next norm, see `models.residual`.
        self.patient = first and not (self.of_sum or config.parallel or config.one_norm)
        self.patient &= config.residual_scale == 1

    def __call__(
        self, x: jax.Array, cache: Cache, context: LayerContext
    ) -> tuple[jax.Array, Cache]:
        """Returns x [T, D] and the cache after this layer."""
        if self.of_sum:
            mixed, cache = self.attention(x, cache, context)
            x = normed(self.attention_norm, x + mixed)
            return normed(self.mlp_norm, x + self.mlp(x, context)), cache
        normal = normed(self.attention_norm, x)
        mixed, cache = self.attention(normal, cache, context)
        attended = x + self._scaled(normed(self.attention_out_norm, mixed))
        if not self.one_norm:
            normal = normed(self.mlp_norm, x if self.parallel else attended)
        mixed = self.mlp(normal, context)
        return attended + self._scaled(normed(self.mlp_out_norm, mixed)), cache

    def after_norm(
        self, x: jax.Array, normal: jax.Array, cache: Cache, context: LayerContext
    ) -> tuple[jax.Array, jax.Array, Cache]:
        """Does what `__call__` does, without the first norm and the last sum.

        Args:
          x: [T, D].
          normal: its norm.
          cache: K/V.
          context: of the layer. The factors of the norms are those of the whole stack.

        Returns:
          x [T, D], the terms that are still to be added to it, see `Linear.terms`, by way of
          `mlp_out_norm` if there is one, and the cache.
        """
        terms, cache = self.attention.terms(normal, cache, context)
        sublayer = self.mlp_norm, context.stacked, self.attention_out_norm
        x, normal = total_and_norm(x, terms, *sublayer)
        return x, self.mlp.terms(normal, context), cache

    def _scaled(self, added: jax.Array) -> jax.Array:
        return added if self.residual_scale == 1 else added * self.residual_scale
