"""DFlash heads (arXiv 2602.06036): small networks that guess a block of tokens in one pass.

The rows of a block are the newest token and mask tokens. They attend to K/V of the text, which are
projections of the target's inner states, and to all rows of the block. The embedding and the output
projection are the target's.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from emsjax.engine.packing import PackedBatch
from emsjax.models.attention import Attention, contained
from emsjax.models.block import Block
from emsjax.models.cached_head import CachedHead
from emsjax.models.config import DecoderConfig
from emsjax.models.context import layer_context
from emsjax.models.layer_context import LayerContext
from emsjax.models.norms import RMSNorm, normed_heads
from emsjax.models.output import logits_of
from emsjax.models.rotation import rotate
from emsjax.models.shared_rows import Table, look_up
from emsjax.pallas_kernels.int8_cache import Cache
from emsjax.pallas_kernels.layer_matmul.api import matmul


@dataclass(frozen=True)
class DFlashConfig:
    """The form of a head.

    Attributes:
      layers: the sizes of its layers. D is the width of its states and of the target's.
      fused: the number of the target's states that it reads.
      windows: the sliding window of each layer in tokens; None for none.
      causal: for each layer, whether a row of a block sees only the rows before it.
      embedding_scale: factor on the embedding.
      logit_scale: factor on the logits.
      soft_cap: soft cap of the logits, applied last; None for none.
    """

    layers: DecoderConfig
    fused: int
    windows: tuple[int | None, ...]
    causal: tuple[bool, ...]
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    soft_cap: float | None = None


class DFlashHead(CachedHead):
    """A head, with the tensors that its checkpoint has."""

    def __init__(
        self, config: DFlashConfig, *, rngs: nnx.Rngs, dtype: jax.typing.DTypeLike = jnp.float32
    ):
        """Makes a head with random weights.

        Args:
          config: the form of the head.
          rngs: for the weights, which are float32 until a checkpoint replaces them.
          dtype: type of the activations.
        """
        layers = config.layers
        width, eps = layers.hidden_size, layers.norm_eps
        super().__init__(layers, config.fused * width, bias=False, rngs=rngs, dtype=dtype)
        self.config = config
        self.read_norm = RMSNorm(width, eps)
        self.layers = nnx.List([Block(layers, None, rngs=rngs) for _ in range(layers.num_layers)])
        self.norm = RMSNorm(width, eps)

    def read(self, batch: PackedBatch, states: jax.Array, cache: Cache, *, max_q_len: int) -> Cache:
        """Writes K/V of tokens that the target has read.

        Args:
          batch: their rows.
          states: [T, n * D], the inputs of n of the target's layers, side by side.
          cache: K/V as described by `cache_spec`.
          max_q_len: static bound on the rows of one slot.
        """
        context = layer_context(self.config.layers, self.dtype, batch, cache, max_q_len)
        fused = self.read_norm(self.fc(states))
        for number, layer in enumerate(self.layers):
            k, v = _keys_and_values(layer.attention, fused, context)
            cache = context.write(cache, k, v, layer=jnp.int32(number))
        return cache

    def embed(self, tokens: jax.Array, embedding: Table) -> jax.Array:
        """Returns the embedding [W, D] of tokens int32[W], by the target's embedding."""
        found = look_up(embedding, tokens).astype(self.dtype)
        scale = self.config.embedding_scale
        return found if scale == 1 else found * jnp.asarray(scale, self.dtype)

    def guess(
        self, batch: PackedBatch, embedded: jax.Array, cache: Cache, *, block: int
    ) -> tuple[jax.Array, Cache]:
        """Runs blocks.

        Args:
          batch: the rows, those of one block in each slot that has any.
          embedded: [T, D], their embeddings.
          cache: K/V as described by `cache_spec`. The rows' K/V are written after each slot's, and
            then those of another block.
          block: rows of a block.

        Returns:
          The states [T, D] from which tokens are guessed; and the cache.
        """
        behind, before = self._contexts(batch, cache, block)
        x = embedded
        for number, layer in enumerate(self.layers):
            context = before if self.config.causal[number] else behind
            context = context._replace(layer=jnp.int32(number), window=self.config.windows[number])
            x, cache = layer(x, cache, context)
        return self.norm(x), cache

    def logits(self, states: jax.Array, output: Table) -> jax.Array:
        """Returns logits float32[W, V] of states [W, D], by the target's output projection.

        If devices share that, each one returns its part of the vocabulary, padded with -inf.
        """
        config = self.config
        size, scale, cap = config.layers.vocab_size, config.logit_scale, config.soft_cap
        return logits_of(states, output, size, scale=scale, soft_cap=cap)

    def _contexts(
        self, batch: PackedBatch, cache: Cache, block: int
    ) -> tuple[LayerContext, LayerContext]:
        """Returns the contexts of layers whose rows see the whole block, and of causal ones.

        Attention is causal. So that each row sees all of the block's K/V, queries take the places
        behind them, of which they see none but the first, the last one of the block. Masked places
        must hold numbers, so the K/V are written there too.
        """
        config, dtype = self.config.layers, self.dtype
        causal = layer_context(config, dtype, batch, cache, block)._replace(stacked=None)
        only_first = jnp.ones(batch.tokens.shape, jnp.uint32)
        far = batch._replace(kv_lens=batch.kv_lens + block - 1, ancestors=only_first)
        shifted = layer_context(config, dtype, far, cache, block)

        def write(cache: Cache, k: jax.Array, v: jax.Array, *, layer: jax.Array) -> Cache:
            cache = shifted.write(cache, k, v, layer=layer)
            return causal.write(cache, k, v, layer=layer)

        return causal._replace(write=write, attend=shifted.attend, attend_packed=None), causal


def _keys_and_values(
    attention: Attention, x: jax.Array, context: LayerContext
) -> tuple[jax.Array, jax.Array]:
    """Returns the keys and values [T, K, H] of rows x [T, D] that ask nothing."""
    num_heads, num_kv_heads, head_dim = attention.heads
    first = num_heads * head_dim
    found = matmul(x, attention.qkv.kernel[...][first:])
    if attention.qkv.bias is not None:
        found = found + attention.qkv.bias[...][None, first:].astype(found.dtype)
    k, v = jnp.split(found.reshape(x.shape[0], 2 * num_kv_heads, head_dim), 2, axis=1)
    k = rotate(normed_heads(attention.k_norm, k), context.own_angles, attention.interleaved)
    return contained(k, v)
