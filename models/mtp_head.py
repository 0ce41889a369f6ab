"""MTP modules: layers for multi-token prediction, which are published inside a target's checkpoint.

A model that learnt to predict several tokens (DeepSeek-V3, arXiv 2412.19437) comes with a layer
that works like an EAGLE-1 head: its row for a token reads the target's state of that token and the
embedding of the token after it, and guesses the token after that with the target's output
projection. It differs in its norms, and reads the state before the target's final norm.

This is MiMo's module (arXiv 2505.07608) as vLLM runs it. Rows of a draft read the module's own
normalised states, so one module guesses any number of tokens.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from emsjax.engine.packing import PackedBatch
from emsjax.models.block import Block
from emsjax.models.cached_head import CachedHead
from emsjax.models.config import DecoderConfig
from emsjax.models.context import layer_context
from emsjax.models.norms import RMSNorm
from emsjax.models.shared_rows import Table, look_up
from emsjax.pallas_kernels.int8_cache import Cache


class MtpHead(CachedHead):
    """A module with one layer of its target's kind; see `EagleHead` for its methods."""

    def __init__(
        self, layers: DecoderConfig, *, rngs: nnx.Rngs, dtype: jax.typing.DTypeLike = jnp.float32
    ):
        """Makes a module with random weights.

        Args:
          layers: the sizes of its only layer.
          rngs: for the weights, which are float32 until a checkpoint replaces them.
          dtype: type of the activations.
        """
        width, eps = layers.hidden_size, layers.norm_eps
        super().__init__(layers, 2 * width, bias=False, rngs=rngs, dtype=dtype)
        self.state_norm = RMSNorm(width, eps)
        self.token_norm = RMSNorm(width, eps)
        self.layer = Block(layers, None, rngs=rngs)
        self.norm = RMSNorm(width, eps)

    def embed(self, tokens: jax.Array, embedding: Table) -> jax.Array:
        """Returns the target's embedding [W, D] of tokens int32[W]."""
        return look_up(embedding, tokens).astype(self.dtype)

    def fuse(self, read: jax.Array) -> jax.Array:
        """Returns the target's states [T, D] as they are."""
        return read

    def __call__(
        self,
        batch: PackedBatch,
        states: jax.Array,
        embedded: jax.Array,
        cache: Cache,
        *,
        max_q_len: int,
    ) -> tuple[jax.Array, Cache]:
        """Returns the states [T, D] of packed rows, and the cache with their K/V."""
        # vLLM and SGLang run a text's first row without the embedding of its second token.
        embedded = jnp.where(batch.positions[:, None] == 0, jnp.zeros_like(embedded), embedded)
        read = jnp.concatenate([self.state_norm(states), self.token_norm(embedded)], axis=-1)
        context = layer_context(self._sizes, self.dtype, batch, cache, max_q_len)
        context = context._replace(stacked=None)
        states, cache = self.layer(self.fc(read), cache, context)
        return self.norm(states), cache

    def logits(self, states: jax.Array) -> None:
        """Returns that the target's output projection turns states into logits."""
