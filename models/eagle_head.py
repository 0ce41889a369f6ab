"""EAGLE heads: small networks that continue from a target's hidden states, with K/V of their own.

A head's row for a token reads the target's hidden state of that token and the embedding of the
token after it, and guesses the token after that. Rows of a draft read the head's own last state
where the target's is not known yet.

EAGLE-1 (arXiv 2401.15077, and EAGLE-2, which differs in its trees only) reads the target's final
states and guesses with the target's output projection. EAGLE-3 (arXiv 2503.01840) reads the inputs
of three of its layers, and has an output projection of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from emsjax.engine.packing import PackedBatch
from emsjax.models.attention import Attention
from emsjax.models.block import Block
from emsjax.models.cached_head import CachedHead
from emsjax.models.config import DecoderConfig
from emsjax.models.context import layer_context
from emsjax.models.layer_context import LayerContext
from emsjax.models.linear import Linear
from emsjax.models.mlp import MLP
from emsjax.models.norms import RMSNorm, normed
from emsjax.models.shared_rows import Table, look_up
from emsjax.pallas_kernels.int8_cache import Cache
from emsjax.pallas_kernels.layer_matmul.api import matmul


@dataclass(frozen=True)
class EagleConfig:
    """The form of a head.

    Attributes:
      layers: the sizes of its layers. D is the width of its states, V the target's vocabulary.
      fused: the number of the target's states that it reads, as EAGLE-3 does; 0 for EAGLE-1, which
        reads the final ones.
      target_size: width of each of them.
      head_size: Vd, the number of tokens that it can guess; 0 to guess with the target's output
        projection.
      bias: whether the projection of what it reads has a bias.
      norm_of_all: whether the states that it reads are normalised together.
      norm_of_each: whether each of them is normalised.
      residual_is_normed: whether its first layer adds to the normalised states.
      feeds_normed: whether its rows continue from normalised states.
      window: sliding window in tokens; None for none.
      own_embedding: whether it has an embedding of its own, and does not use the target's.
    """

    layers: DecoderConfig
    fused: int
    target_size: int
    head_size: int
    bias: bool = False
    norm_of_all: bool = False
    norm_of_each: bool = False
    residual_is_normed: bool = False
    feeds_normed: bool = False
    window: int | None = None
    own_embedding: bool = False


class FirstLayer(nnx.Module):
    """A layer whose attention reads embeddings beside the states, or only states (EAGLE-1)."""

    def __init__(self, config: EagleConfig, *, rngs: nnx.Rngs, mlp: Callable[..., Any] = MLP):
        """Makes the layer; `mlp` is the class of its feed-forward part."""
        layers = config.layers
        width, eps = layers.hidden_size, layers.norm_eps
        self.token_norm = RMSNorm(width, eps) if config.fused else None
        self.state_norm = RMSNorm(width, eps) if config.fused else None
        self.attention = Attention(layers, rngs=rngs, num_in=2 * width if config.fused else width)
        self.mlp_norm = RMSNorm(width, eps)
        self.mlp = mlp(layers, rngs=rngs)
        self.residual_is_normed = config.residual_is_normed

    def __call__(
        self, states: jax.Array, embedded: jax.Array, cache: Cache, context: LayerContext
    ) -> tuple[jax.Array, Cache]:
        """Returns states [T, D] and the cache after this layer."""
        states, cache = self.attended(states, embedded, cache, context)
        return states + self.mlp(self.mlp_norm(states), context), cache

    def attended(
        self, states: jax.Array, embedded: jax.Array, cache: Cache, context: LayerContext
    ) -> tuple[jax.Array, Cache]:
        """Returns states [T, D] and the cache before the feed-forward part."""
        read = states
        if self.token_norm is not None:
            normal = normed(self.state_norm, states)
            read = jnp.concatenate([self.token_norm(embedded), normal], axis=-1)
            states = normal if self.residual_is_normed else states
        mixed, cache = self.attention(read, cache, context)
        return states + mixed, cache


class EagleHead(CachedHead):
    """A head, with the tensors that its checkpoint has."""

    first_layer: ClassVar[type[FirstLayer]] = FirstLayer

    def __init__(
        self, config: EagleConfig, *, rngs: nnx.Rngs, dtype: jax.typing.DTypeLike = jnp.float32
    ):
        """Makes a head with random weights.

        Args:
          config: the form of the head.
          rngs: for the weights, which are float32 until a checkpoint replaces them.
          dtype: type of the activations.
        """
        layers = config.layers
        width, eps = layers.hidden_size, layers.norm_eps
        read = config.fused * config.target_size or width + config.target_size
        super().__init__(layers, read, bias=config.bias, rngs=rngs, dtype=dtype)
        self.config = config
        self.all_norm = RMSNorm(read, eps) if config.norm_of_all else None
        each = config.fused if config.norm_of_each else 0
        self.each_norm = nnx.List([RMSNorm(config.target_size, eps) for _ in range(each)])
        self.first = self.first_layer(config, rngs=rngs)
        others = range(1, layers.num_layers)
        self.others = nnx.List([Block(layers, None, rngs=rngs) for _ in others])
        self.norm = RMSNorm(width, eps) if config.head_size else None
        size = config.head_size
        self.head = Linear(width, size, bias=False, rngs=rngs) if size else None
        shape = layers.vocab_size, width
        init = nnx.initializers.normal(0.02)
        own = config.own_embedding
        self.tokens = nnx.Param(init(rngs.params(), shape, jnp.float32)) if own else None

    def embed(self, tokens: jax.Array, embedding: Table) -> jax.Array:
        """Returns the embedding [W, D] of tokens int32[W], by the target's unless it has its own.

        No format scales it, not even for targets that do.
        """
        table = embedding if self.tokens is None else self.tokens[...]
        return look_up(table, tokens).astype(self.dtype)

    def fuse(self, read: jax.Array) -> jax.Array:
        """Turns the target's states [T, E] into states of the head [T, D]."""
        if not self.config.fused:
            return read
        read = normed(self.all_norm, read)
        if self.each_norm:
            parts = jnp.split(read, len(self.each_norm), axis=-1)
            norms = zip(self.each_norm, parts, strict=True)
            read = jnp.concatenate([norm(part) for norm, part in norms], axis=-1)
        return self.fc(read)

    def __call__(
        self,
        batch: PackedBatch,
        states: jax.Array,
        embedded: jax.Array,
        cache: Cache,
        *,
        max_q_len: int,
    ) -> tuple[jax.Array, Cache]:
        """Runs packed rows.

        Args:
          batch: the rows; their tokens are not read.
          states: [T, D], what `fuse` returns, or states of the head from an earlier call.
          embedded: [T, D], the embedding of the token after each row.
          cache: K/V as described by `cache_spec`. The rows' K/V are written after each slot's.
          max_q_len: static bound on the rows of one slot.

        Returns:
          The states [T, D] from which tokens are guessed and rows of a draft continue; and the
          cache.
        """
        context = layer_context(self.config.layers, self.dtype, batch, cache, max_q_len)
        context = context._replace(stacked=None, window=self.config.window)
        return self.run_layers(states, embedded, cache, context)

    def run_layers(
        self, states: jax.Array, embedded: jax.Array, cache: Any, context: LayerContext
    ) -> tuple[jax.Array, Any]:
        """Runs rows with any attention; `__call__` has the arguments, and the rows' results."""
        if not self.config.fused:
            states = self.fc(jnp.concatenate([embedded, states], axis=-1))
        states, cache = self.first(states, embedded, cache, context)
        for number, layer in enumerate(self.others, 1):
            states, cache = layer(states, cache, context._replace(layer=jnp.int32(number)))
        return normed(self.norm, states) if self.config.feeds_normed else states, cache

    def logits(self, states: jax.Array) -> jax.Array | None:
        """Returns logits float32[W, Vd] of states [W, D]; None if that is up to the target."""
        if self.head is None:
            return None
        hidden = states if self.config.feeds_normed else normed(self.norm, states)
        return matmul(hidden, self.head.weights, jnp.dtype(jnp.float32))
