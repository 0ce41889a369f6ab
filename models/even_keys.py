"""Evens out the channels of keys, so that int8 holds them better. Scores stay exactly the same.

The biases of some models make a few channels of their keys huge, and a head's scale is then theirs.
Keys are divided, and queries multiplied, by a factor for each KV head and channel, which the
weights alone decide. It is the root of the channel's size, so that queries take half of the spread,
and a power of two, so that nothing is rounded. Two channels that are rotated together share one.
"""

import functools

import jax
import jax.numpy as jnp

from emsjax.models.block import Block
from emsjax.models.config import DecoderConfig
from emsjax.models.decoder import DecoderLM
from emsjax.models.norms import LayerNorm, RMSNorm
from emsjax.pallas_kernels.quantised import Weights, floats, some_rows

# The largest factor, and one over the smallest: far more than models need, and safe in float16.
_MOST = 2.0**5


def even_out_keys(model: DecoderLM) -> None:
    """Changes the weights of queries and keys in place; their own memory is reused.

    A model whose norms of queries and keys add 1 to their weights is left as it is, since that
    would round. So is one that bounds its queries and keys.
    """
    config = model.config
    if config.qkv_bound is not None:
        return
    for stack in model.stacks:
        if config.qk_norm is None:
            _even_out_products(stack, config)
        elif not config.norm_offset:
            _even_out_norms(stack, config)


def _even_out_products(stack: Block, config: DecoderConfig) -> None:
    """Divides rows of the product that makes keys, and multiplies those that make queries."""
    qkv, before = stack.attention.qkv, stack.attention_norm
    gain = None if before is None else before.scale[...] + (1 if config.norm_offset else 0)
    bias = None if qkv.bias is None else qkv.bias[...]
    rows = _row_factors(qkv.weights, bias, gain, config)
    if qkv.bias is not None:
        qkv.bias.set_value(_times(qkv.bias[...], rows))
    if qkv.kernel_scales is not None:
        for each in (qkv.kernel_scales, qkv.kernel_offsets):
            if each is not None:
                each.set_value(_times(each[...], rows[:, None]))
    elif qkv.kernel_scale is not None:
        qkv.kernel_scale.set_value(_times(qkv.kernel_scale[...], rows))
    else:
        qkv.kernel.set_value(_times(qkv.kernel[...], rows[..., None]))


def _even_out_norms(stack: Block, config: DecoderConfig) -> None:
    """Divides the weights of the norm of keys, and multiplies those of queries."""
    q_norm, k_norm = stack.attention.q_norm, stack.attention.k_norm
    assert q_norm is not None
    assert k_norm is not None
    weight = k_norm.scale[...]
    sizes = jnp.abs(weight.astype(jnp.float32)).reshape(len(weight), -1, config.head_dim)
    factors = _factors(sizes, config)
    group = 1 if config.qk_norm == "head" else config.num_heads // config.num_kv_heads
    _multiply(k_norm, 1 / factors)
    _multiply(q_norm, jnp.repeat(factors, group, axis=1))


def _multiply(norm: RMSNorm | LayerNorm, factors: jax.Array) -> None:
    """Multiplies a norm's results by factors [L, heads, H]."""
    bias = norm.bias if isinstance(norm, LayerNorm) else None
    for each in (norm.scale, bias):
        if each is not None:
            each.set_value(_times(each[...], factors.reshape(each.shape)))


@functools.partial(jax.jit, static_argnames="config")
def _row_factors(
    weights: Weights, bias: jax.Array | None, gain: jax.Array | None, config: DecoderConfig
) -> jax.Array:
    """Returns a factor for each row of the kernels [L, out, in], float32[L, out]."""
    heads, kv_heads, width = config.num_heads, config.num_kv_heads, config.head_dim
    keys = slice(heads * width, (heads + kv_heads) * width)
    rows = floats(some_rows(weights, keys)).astype(jnp.float32)
    # The inputs are normalised, so a norm's weight is the size of what a column multiplies.
    squares = jnp.square(rows if gain is None else rows * gain[:, None].astype(jnp.float32))
    sums = squares.sum(axis=2)
    if bias is not None:
        sums += jnp.square(bias[:, keys].astype(jnp.float32))
    factors = _factors(jnp.sqrt(sums).reshape(len(sums), kv_heads, width), config)
    parts = jnp.repeat(factors, heads // kv_heads, axis=1), 1 / factors, jnp.ones_like(factors)
    return jnp.concatenate([part.reshape(len(sums), -1) for part in parts], axis=1)


def _factors(sizes: jax.Array, config: DecoderConfig) -> jax.Array:
    """Returns factors for channels of some sizes, both [L, heads, H]: powers of two."""
    turned = 0 if config.rope is None else 2 * len(config.rope.inverse_frequencies)
    pairs, still = jnp.split(sizes, (turned,), axis=2)
    axis = 3 if config.rope_interleaved else 2
    by_pair = (turned // 2, 2) if config.rope_interleaved else (2, turned // 2)
    pairs = pairs.reshape(*sizes.shape[:2], *by_pair)
    larger = jnp.broadcast_to(pairs.max(axis=axis, keepdims=True), pairs.shape)
    shared = jnp.concatenate([larger.reshape(*sizes.shape[:2], turned), still], axis=2)
    usual = jnp.sqrt(jnp.square(shared).mean(axis=2, keepdims=True))
    roots = jnp.sqrt(shared / jnp.maximum(usual, jnp.finfo(jnp.float32).tiny))
    return jnp.exp2(jnp.round(jnp.log2(jnp.clip(roots, 1 / _MOST, _MOST))))


@functools.partial(jax.jit, donate_argnums=0)
def _times(array: jax.Array, factors: jax.Array) -> jax.Array:
    return (array.astype(jnp.float32) * factors).astype(array.dtype)
