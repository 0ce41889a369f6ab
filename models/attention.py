"""Self-attention: from the hidden states of packed rows to what their slots' caches add to them."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from emsjax.models.config import DecoderConfig
from emsjax.models.layer_context import LayerContext
from emsjax.models.linear import Linear
from emsjax.models.norms import RMSNorm, heads_norm, normed_heads
from emsjax.models.rotation import rotate
from emsjax.pallas_kernels.backends import target_platform
from emsjax.pallas_kernels.int8_cache import Cache
from emsjax.pallas_kernels.norms import HeadNorms


class Attention(nnx.Module):
    """Self-attention of packed rows over their slots' caches."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs, num_in: int | None = None):
        """Makes the sublayer; its rows are `num_in` wide, by default as wide as hidden states."""
        self.heads = (config.num_heads, config.num_kv_heads, config.head_dim)
        num_heads, num_kv_heads, head_dim = self.heads
        width = (num_heads + 2 * num_kv_heads) * head_dim
        self.qkv = Linear(num_in or config.hidden_size, width, bias=config.qkv_bias, rngs=rngs)
        self.out = Linear(
            num_heads * head_dim,
            config.hidden_size,
            bias=config.out_bias,
            rngs=rngs,
            summed=config.sums,
        )
        self.q_norm = heads_norm(config, num_heads)
        self.k_norm = heads_norm(config, num_kv_heads)
        self.interleaved = config.rope_interleaved
        self.scale = config.attention_scale or head_dim**-0.5
        self.soft_cap = config.attention_soft_cap
        self.sinks = nnx.Param(jnp.zeros((num_heads,), jnp.float32)) if config.sinks else None
        self.bound = config.qkv_bound

    @property
    def packs(self) -> bool:
        """Whether a kernel for packed rows may do what is between the two products."""
        norm = self.q_norm
        local = norm is None or (isinstance(norm, RMSNorm) and norm.summed is None)
        return local and self.bound is None

    def _head_norms(self, context: LayerContext) -> HeadNorms | None:
        """Returns the norms of queries and keys for the kernel, which reads them in the stack."""
        queries, keys = self.q_norm, self.k_norm
        if queries is None or keys is None:
            return None
        assert isinstance(queries, RMSNorm), "others are left to XLA"
        of_queries, of_keys, layer = queries.scale[...], keys.scale[...], context.stacked
        if layer is None:
            of_queries, of_keys, layer = of_queries[None], of_keys[None], jnp.int32(0)
        return HeadNorms(of_queries, of_keys, layer, queries.eps, queries.offset)

    def _project(
        self, x: jax.Array, context: LayerContext
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns queries [T, N, H], keys and values [T, K, H], ready for attention.

        Queries and keys are normalised, if the model does so, and rotated.
        """
        num_heads, num_kv_heads, head_dim = self.heads
        packed = self.qkv(x, context.stacked)
        if target_platform() == "tpu":
            # XLA would draw the reshape into the product, whose weights it then copies out of
            # their stack and lays out anew: a sixth of a step of Llama-3-8B on v5e.
            packed = jax.lax.optimization_barrier(packed)
        packed = packed.reshape(x.shape[0], -1, head_dim)
        qk, v = jnp.split(packed, (num_heads + num_kv_heads,), axis=1)
        if self.q_norm is not None:
            q, k = jnp.split(qk, (num_heads,), axis=1)
            normal = normed_heads(self.q_norm, q), normed_heads(self.k_norm, k)
            qk = jnp.concatenate(normal, axis=1)
        if self.bound is not None:
            qk, v = (jnp.clip(x, -self.bound, self.bound) for x in (qk, v))
        q, k = jnp.split(rotate(qk, context.own_angles, self.interleaved), (num_heads,), axis=1)
        if context.query_factor is not None:
            q = q * context.query_factor.astype(q.dtype)
        return q, *contained(k, v)

    def __call__(
        self, x: jax.Array, cache: Cache, context: LayerContext
    ) -> tuple[jax.Array, Cache]:
        """Returns the sublayer's output [T, D] for x [T, D], and the cache with the rows' K/V."""
        mixed, cache = self._mix(x, cache, context)
        return self.out(mixed, context.stacked), cache

    def terms(self, x: jax.Array, cache: Cache, context: LayerContext) -> tuple[jax.Array, Cache]:
        """Returns terms that add up to the output, see `Linear.terms`, and the cache."""
        mixed, cache = self._mix(x, cache, context)
        return self.out.terms(mixed, context.stacked), cache

    def _mix(self, x: jax.Array, cache: Cache, context: LayerContext) -> tuple[jax.Array, Cache]:
        """Returns what the rows see, [T, N * H], and the cache with their K/V.

        The K/V are written before attention, so that a row also sees the rows before it.
        """
        options: dict[str, Any] = {
            "layer": context.layer,
            "scale": self.scale,
            "window": context.window,
            "sink_tokens": context.sink_tokens,
            "soft_cap": self.soft_cap,
            "sinks": None if self.sinks is None else self.sinks[...].astype(jnp.float32),
        }
        if context.attend_packed is not None and self.packs:
            return context.attend_packed(
                self.qkv(x, context.stacked),
                cache,
                norms=self._head_norms(context),
                angles=context.angles,
                table=context.table,
                interleaved=self.interleaved,
                factor=context.query_factor,
                **options,
            )
        q, k, v = self._project(x, context)
        cache = context.write(cache, k, v, layer=context.layer)
        mixed = context.attend(q, cache, **options)
        return mixed.reshape(x.shape[0], -1), cache


def contained(k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Moves NaN and infinity from values [T, K, H] to the same lanes of their keys; returns both.

    A row must not be harmed by draft tokens after it, which may be wrong. Attention replaces the
    scores of those, but only multiplies their values by 0, and 0 * NaN is NaN. Rows that do attend
    to such a token become NaN by its score.
    """
    sound = jnp.isfinite(v)
    return jnp.where(sound, k, jnp.nan), jnp.where(sound, v, 0)
