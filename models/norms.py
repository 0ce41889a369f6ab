"""The norms of hidden states, and of the heads of queries and keys."""

import jax
import jax.numpy as jnp
from flax import nnx

from emsjax.models.config import DecoderConfig, Sums
from emsjax.models.shared_rows import sum_of_shards
from emsjax.pallas_kernels.norms import rms_scaled
from emsjax.shapes import SHARDS


class RMSNorm(nnx.Module):
    """Computes x / rms(x) * scale over the last axis, in float32; with offset, * (1 + scale).

    If devices' squares are summed, each has an equal part of the axis.
    """

    def __init__(self, width: int, eps: float, *, offset: bool = False, summed: Sums | None = None):
        self.scale = nnx.Param(jnp.full((width,), 0.0 if offset else 1.0, jnp.float32))
        self.eps = eps
        self.offset = offset
        self.summed = summed

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises x [..., width] of any float type; returns the same shape and type."""
        wide = x.astype(jnp.float32)
        square = jnp.mean(wide**2, axis=-1, keepdims=True)
        if self.summed is not None:
            square = sum_of_shards(square, self.summed) / jax.lax.axis_size(SHARDS)
        scale = jnp.broadcast_to(self.scale[...], x.shape)
        return rms_scaled(wide, square, scale, self.eps, self.offset, x.dtype)


class LayerNorm(nnx.Module):
    """Computes (x - mean) / deviation * scale + bias over the last axis, in float32.

    With offset, the factor is 1 + scale. A shape of two axes gives each head its own scale.
    """

    def __init__(
        self, shape: int | tuple[int, int], eps: float, *, bias: bool = True, offset: bool = False
    ):
        self.scale = nnx.Param(jnp.full(shape, 0.0 if offset else 1.0, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(shape, jnp.float32)) if bias else None
        self.eps = eps
        self.offset = offset

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises x [..., width] of any float type; returns the same shape and type."""
        wide = x.astype(jnp.float32)
        centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
        normal = centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + self.eps)
        scale = self.scale[...].astype(jnp.float32)
        scale = jnp.broadcast_to(1 + scale if self.offset else scale, x.shape)
        if self.bias is None:
            return (normal * scale).astype(x.dtype)
        bias = jnp.broadcast_to(self.bias[...].astype(jnp.float32), x.shape)
        return (normal * scale + bias).astype(x.dtype)


def norm(config: DecoderConfig, width: int) -> RMSNorm | LayerNorm:
    """Returns a normalisation of the kind that `config` specifies."""
    if config.norm == "layer":
        offset = config.norm_offset
        return LayerNorm(width, config.norm_eps, bias=config.norm_bias, offset=offset)
    return RMSNorm(width, config.norm_eps, offset=config.norm_offset)


def heads_norm(config: DecoderConfig, heads: int) -> RMSNorm | LayerNorm | None:
    """Returns the normalisation of queries or keys with so many heads, or None for none."""
    if config.qk_norm is None:
        return None
    if config.qk_norm == "each":
        return LayerNorm((heads, config.head_dim), config.norm_eps, bias=False)
    if config.qk_norm == "head":
        return norm(config, config.head_dim)
    whole = norm(config, config.head_dim * heads)
    if config.sums is not None:
        assert isinstance(whole, RMSNorm)
        whole.summed = config.sums
    return whole


def normed(module: RMSNorm | LayerNorm | None, x: jax.Array) -> jax.Array:
    """Normalises x if there is a norm."""
    return x if module is None else module(x)


def normed_heads(module: RMSNorm | LayerNorm | None, x: jax.Array) -> jax.Array:
    """Normalises x [T, heads, H], each head or all together by the norm's width, if it is there."""
    if module is None:
        return x
    return module(x.reshape(x.shape[0], -1, module.scale.shape[-1])).reshape(x.shape)
