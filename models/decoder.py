"""The packed forward pass: one decoder for all families, layers scanned over stacked weights."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from emsjax.engine.packing import PackedBatch
from emsjax.models.config import DecoderConfig
from emsjax.models.layers import MLP, Linear, RMSNorm, norm, rotary_angles, rotate
from emsjax.pallas_kernels.cache_update.api import update_kv_cache
from emsjax.pallas_kernels.kv_layout import LANES, rows_per_token, storage_dtype
from emsjax.pallas_kernels.products import matmul
from emsjax.pallas_kernels.ragged_attention.api import ragged_attention

Angles = tuple[jax.Array, jax.Array]


class LayerContext(NamedTuple):
    """What a layer needs to know beside its input.

    Attributes:
      layer: int32[], which layer of the cache is its own.
      batch: the packed rows.
      angles: cosine and sine of the rotary embedding; None without one.
      window: sliding window in tokens; None for none.
      max_q_len: static bound on the rows of one slot.
    """

    layer: jax.Array
    batch: PackedBatch
    angles: Angles | None
    window: jax.Array | int | None
    max_q_len: int


class Attention(nnx.Module):
    """Self-attention of packed rows over their slots' caches."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        self.heads = (config.num_heads, config.num_kv_heads, config.head_dim)
        num_heads, num_kv_heads, head_dim = self.heads
        width = (num_heads + 2 * num_kv_heads) * head_dim
        self.qkv = Linear(config.hidden_size, width, bias=config.qkv_bias, rngs=rngs)
        self.out = Linear(num_heads * head_dim, config.hidden_size, bias=config.out_bias, rngs=rngs)
        self.q_norm = RMSNorm(head_dim, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(head_dim, config.norm_eps) if config.qk_norm else None

    def _project(
        self, x: jax.Array, context: LayerContext
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries [T, N, H], keys and values [T, K, H], normalised and rotated."""
        num_heads, num_kv_heads, head_dim = self.heads
        packed = self.qkv(x, context.layer).reshape(x.shape[0], -1, head_dim)
        q, k, v = jnp.split(packed, (num_heads, num_heads + num_kv_heads), axis=1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return rotate(q, context.angles), rotate(k, context.angles), v

    def __call__(
        self, x: jax.Array, cache: jax.Array, context: LayerContext
    ) -> tuple[jax.Array, jax.Array]:
        """x [T, D] to the sublayer's output [T, D] and the cache with these rows' K/V in it."""
        q, k, v = self._project(x, context)
        batch = context.batch
        cache = update_kv_cache(
            cache,
            k,
            v,
            layer=context.layer,
            slot_ids=batch.slot_ids,
            cu_q_lens=batch.cu_q_lens,
            kv_lens=batch.kv_lens,
        )
        _, num_kv_heads, head_dim = self.heads
        mixed = ragged_attention(
            q,
            cache,
            layer=context.layer,
            cu_q_lens=batch.cu_q_lens,
            kv_lens=batch.kv_lens,
            num_kv_heads=num_kv_heads,
            max_q_len=context.max_q_len,
            scale=head_dim**-0.5,
            window=context.window,
            ancestors=batch.ancestors,
            holes=batch.holes,
        )
        return self.out(mixed.reshape(x.shape[0], -1), context.layer), cache


class Block(nnx.Module):
    """One layer: attention and feed-forward, each with a norm and a residual."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        self.attention_norm = norm(config, config.hidden_size)
        self.attention = Attention(config, rngs=rngs)
        self.mlp_norm = norm(config, config.hidden_size)
        self.mlp = MLP(config, rngs=rngs)
        self.pre_norm = config.pre_norm

    def __call__(
        self, x: jax.Array, cache: jax.Array, context: LayerContext
    ) -> tuple[jax.Array, jax.Array]:
        """x [T, D] and the cache to the same, one layer on."""
        if self.pre_norm:
            mixed, cache = self.attention(self.attention_norm(x), cache, context)
            x = x + mixed
            return x + self.mlp(self.mlp_norm(x), context.layer), cache
        mixed, cache = self.attention(x, cache, context)
        x = self.attention_norm(x + mixed)
        return self.mlp_norm(x + self.mlp(x, context.layer)), cache


class Embedder(nnx.Module):
    """Token (and learned position) embeddings, and the projections of a narrower embedding."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        width = config.embedding_size or config.hidden_size
        init = nnx.initializers.normal(0.02)
        self.tokens = nnx.Param(init(rngs.params(), (config.vocab_size, width), jnp.float32))
        rows = config.max_positions + config.position_offset
        self.positions = (
            nnx.Param(init(rngs.params(), (rows, config.hidden_size), jnp.float32))
            if config.rope is None
            else None
        )
        narrow, sizes = config.embedding_size is not None, (width, config.hidden_size)
        self.project_in = Linear(*sizes, bias=False, rngs=rngs) if narrow else None
        self.project_out = Linear(*sizes[::-1], bias=False, rngs=rngs) if narrow else None
        self.position_offset = config.position_offset

    def __call__(self, batch: PackedBatch) -> jax.Array:
        """The first hidden states [T, D]."""
        x = self.tokens[...][batch.tokens]
        if self.project_in is not None:
            x = self.project_in(x)
        if self.positions is not None:
            x = x + self.positions[...][batch.positions + self.position_offset]
        return x


def _is_kernel(path: tuple, value: object) -> bool:
    del value
    return path[-1] == "kernel"


class DecoderLM(nnx.Module):
    """A causal language model over packed rows. Parameters of the layers are stacked, [L, ...]."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embedder = Embedder(config, rngs=rngs)
        make_block = nnx.vmap(lambda rngs: Block(config, rngs=rngs), in_axes=0, out_axes=0)
        self.blocks = make_block(rngs.split(config.num_layers))
        self.final_norm = norm(config, config.hidden_size) if config.final_norm else None
        width = config.embedding_size or config.hidden_size
        self.head = None if config.tied else Linear(width, config.vocab_size, bias=False, rngs=rngs)

    @property
    def dtype(self) -> jnp.dtype:
        """Type of weights and activations."""
        return jnp.dtype(self.embedder.tokens.dtype)

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.config.vocab_size

    @property
    def max_positions(self) -> int:
        """The longest sequence the model was made for, in tokens."""
        return self.config.max_positions

    def cache_spec(self, num_slots: int, capacity: int) -> jax.ShapeDtypeStruct:
        """Shape and type of the K/V cache for B slots of S tokens: [L, B, S, R, 128]."""
        config = self.config
        rows = rows_per_token(config.num_kv_heads, config.head_dim)
        shape = (config.num_layers, num_slots, capacity, rows, LANES)
        return jax.ShapeDtypeStruct(shape, storage_dtype(self.dtype))

    def __call__(
        self, batch: PackedBatch, cache: jax.Array, *, max_q_len: int
    ) -> tuple[jax.Array, jax.Array]:
        """Runs the packed rows through all layers.

        Args:
          batch: the rows, see `PackedBatch`.
          cache: as `cache_spec` says; the rows' K/V are written at each slot's own offset.
          max_q_len: static bound on the rows of one slot.

        Returns:
          Hidden states of all packed rows as the output projection reads them, normalised and as
          wide as the embedding [T, E], and the updated cache.
        """
        config = self.config
        angles = None if config.rope is None else rotary_angles(config.rope, batch.positions)
        # The kernels stay whole: what takes a layer's part of them need not copy it.
        block_def, kernels, others = nnx.split(self.blocks, _is_kernel, ...)
        layers = jnp.arange(config.num_layers, dtype=jnp.int32)
        windows, shared_window = self._windows()

        def run_layer(carry: tuple, scanned: tuple) -> tuple[tuple, None]:
            others, layer, window = scanned
            window = shared_window if window is None else window
            block = nnx.merge(block_def, kernels, others)
            context = LayerContext(layer, batch, angles, window, max_q_len)
            return block(*carry, context), None

        start = (self.embedder(batch), cache)
        (x, cache), _ = jax.lax.scan(run_layer, start, (others, layers, windows))
        x = x if self.final_norm is None else self.final_norm(x)
        project_out = self.embedder.project_out
        return (x if project_out is None else project_out(x)), cache

    def _windows(self) -> tuple[jax.Array | None, int | None]:
        """Sliding windows of the layers: per layer where they differ, else one for all."""
        windows = self.config.windows
        if len(set(windows)) <= 1:
            return None, (windows[0] or None) if windows else None
        unlimited = jnp.iinfo(jnp.int32).max // 2
        return jnp.asarray([w or unlimited for w in windows], jnp.int32), None

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Hidden states [W, E] to float32 logits [W, V]."""
        kernel = self.embedder.tokens if self.head is None else self.head.kernel
        return matmul(hidden, kernel[...], jnp.dtype(jnp.float32))
