"""The building blocks that all families share."""

from collections.abc import Callable
from types import MappingProxyType
from typing import ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from emsjax.engine.packing import PackedBatch
from emsjax.models.config import Activation, ClampedGate, DecoderConfig, Rope, Sums
from emsjax.models.shared_rows import sum_of_shards
from emsjax.pallas_kernels.backends import target_platform
from emsjax.pallas_kernels.int8_cache import Cache
from emsjax.pallas_kernels.layer_matmul.api import layer_matmul, layer_sums, matmul
from emsjax.pallas_kernels.norms import rms_scaled
from emsjax.pallas_kernels.quantised import Weights, weights_of
from emsjax.pallas_kernels.ragged_attention.api import Attend, AttendPacked
from emsjax.shapes import SHARDS

ACTIVATIONS: MappingProxyType[str, Callable[[jax.Array], jax.Array]] = MappingProxyType(
    {
        "relu": jax.nn.relu,
        "relu2": lambda x: jnp.square(jax.nn.relu(x)),
        "gelu": lambda x: jax.nn.gelu(x, approximate=False),
        "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
        "silu": jax.nn.silu,
    }
)


class Write(Protocol):
    """`update_kv_cache` without the arguments that are the same in every layer."""

    def __call__(self, cache: Cache, k: jax.Array, v: jax.Array, *, layer: jax.Array) -> Cache:
        """Returns the cache with keys and values [T, K, H] of the rows."""


class LayerContext(NamedTuple):
    """The inputs of a layer besides the hidden states and the cache.

    All layers share everything except `layer`, `stacked`, `window`, `sink_tokens` and `table`.

    Attributes:
      layer: int32[], index of the layer in the cache.
      stacked: int32[], index of the layer in its stack of weights; None if it is in no stack.
      window: sliding window in tokens; None for no window.
      batch: the packed rows.
      angles: cosine and sine of the rotary embedding, see `rotary_angles`; None for a model
        without one.
      query_factor: float32[T, 1, 1], factor on the queries; None for none.
      write: puts the rows' K/V into the cache.
      attend: attention over the caches of this step's slots.
      sink_tokens: the first tokens of a slot, so many of which the window does not hide; None for
        none.
      attend_packed: norms of heads, rotation, `write` and `attend` in one; None if there is no
        kernel for it.
      table: int32[], which table of `angles` is the layer's; None if all layers share one.
    """

    layer: jax.Array
    stacked: jax.Array | None
    window: jax.Array | int | None
    batch: PackedBatch
    angles: tuple[jax.Array, jax.Array] | None
    query_factor: jax.Array | None
    write: Write
    attend: Attend
    sink_tokens: jax.Array | int | None = None
    attend_packed: AttendPacked | None = None
    table: jax.Array | None = None

    @property
    def own_angles(self) -> tuple[jax.Array, jax.Array] | None:
        """Cosine and sine of the layer, float32[T, 1, pairs] each."""
        if self.angles is None or self.table is None:
            return self.angles
        cos, sin = self.angles
        return cos[self.table], sin[self.table]


class Linear(nnx.Module):
    """Computes x @ kernel.T + bias. The kernel is [out, in], as in checkpoints.

    `models.quantised` turns the kernel into int8 and adds `kernel_scale`, or into 4 bits and adds
    `kernel_scales`, `kernel_offsets` and `kernel_order`.
    """

    quantisable: ClassVar[str] = "kernel"

    def __init__(
        self,
        num_in: int,
        num_out: int,
        *,
        bias: bool,
        rngs: nnx.Rngs,
        summed: Sums | None = None,
    ):
        """Makes random weights.

        Args:
          num_in: width of the inputs, or of one device's part of them.
          num_out: width of the results.
          bias: whether there is a bias.
          rngs: for the weights.
          summed: how the devices' results are added if each has a part of the inputs.
        """
        init = nnx.initializers.normal(num_in**-0.5)
        self.summed = summed
        self.kernel = nnx.Param(init(rngs.params(), (num_out, num_in), jnp.float32))
        self.kernel_scale: nnx.Param | None = None
        self.kernel_scales: nnx.Param | None = None
        self.kernel_offsets: nnx.Param | None = None
        self.kernel_order: nnx.Param | None = None
        self.bias = nnx.Param(jnp.zeros((num_out,), jnp.float32)) if bias else None

    @property
    def weights(self) -> Weights:
        """The kernel, together with its scales if it is quantised."""
        return weights_of(self, "kernel")

    def __call__(self, x: jax.Array, layer: jax.Array | None = None) -> jax.Array:
        """Turns x [T, in] into [T, out].

        Args:
          x: the rows.
          layer: int32[], which kernel to use from a stack [L, out, in]; None if the kernel is not
            stacked.
        """
        weights = self.weights
        y = matmul(x, weights) if layer is None else layer_matmul(x, weights, layer=layer)
        if self.summed is not None:
            y = sum_of_shards(y, self.summed)
        return y if self.bias is None else y + self.bias[...][None].astype(y.dtype)

    def terms(self, x: jax.Array, layer: jax.Array | None) -> jax.Array:
        """Returns terms that add up to `self(x, layer)`: [P, at least T, out], see `layer_sums`."""
        if layer is None or self.summed is not None or self.bias is not None:
            return self(x, layer)[None]
        return layer_sums(x, self.weights, layer=layer)


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


def soft_capped(x: jax.Array, cap: float | None) -> jax.Array:
    """Keeps x between -cap and cap; returns it unchanged for None."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def rotary_angles(
    config: DecoderConfig, positions: jax.Array
) -> tuple[jax.Array, jax.Array] | None:
    """Returns cosine and sine for `positions` int32[T], float32[T, 1, H / 2] each.

    If layers differ, the results have a leading axis for `config.rope_tables`. Returns None for a
    model with learned positions.
    """
    if config.rope_tables:
        each = [_angles(rope, positions) for rope in config.rope_tables]
        return jnp.stack([cos for cos, _ in each]), jnp.stack([sin for _, sin in each])
    return None if config.rope is None else _angles(config.rope, positions)


def query_factor(config: DecoderConfig, positions: jax.Array) -> jax.Array | None:
    """Returns float32[T, 1, 1], the factor on the queries at `positions`, or None for none."""
    if config.query_growth is None:
        return None
    beta, length = config.query_growth
    lengths = jnp.floor(positions.astype(jnp.float32) / length)
    return 1 + beta * jnp.log1p(lengths)[:, None, None]


def normed_heads(module: RMSNorm | LayerNorm | None, x: jax.Array) -> jax.Array:
    """Normalises x [T, heads, H], each head or all together by the norm's width, if it is there."""
    if module is None:
        return x
    return module(x.reshape(x.shape[0], -1, module.scale.shape[-1])).reshape(x.shape)


def _angles(rope: Rope, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    frequencies = jnp.asarray(rope.inverse_frequencies, jnp.float32)
    angles = positions.astype(jnp.float32)[:, None, None] * frequencies[None, None]
    return jnp.cos(angles) * rope.attention_factor, jnp.sin(angles) * rope.attention_factor


def rotate(
    x: jax.Array, cos_sin: tuple[jax.Array, jax.Array] | None, interleaved: bool = False
) -> jax.Array:
    """Rotates pairs of lanes in each head of x [T, heads, H].

    Args:
      x: queries or keys.
      cos_sin: cosine and sine [T, 1, pairs], for the first lanes of a head if there are fewer than
        H / 2 pairs; None returns x unchanged.
      interleaved: whether pairs are neighbours, and not halves apart.
    """
    if cos_sin is None:
        return x
    cos, sin = cos_sin
    turned_lanes = 2 * cos.shape[-1]
    if turned_lanes < x.shape[-1]:
        turned, still = jnp.split(x, (turned_lanes,), axis=-1)
        return jnp.concatenate([rotate(turned, cos_sin, interleaved), still], axis=-1)
    wide = x.astype(jnp.float32)
    # On a CPU the second form rounded differently in programs for different batches.
    if interleaved or target_platform() == "cpu":
        halves = wide[..., ::2], wide[..., 1::2]
        first, second = halves if interleaved else jnp.split(wide, 2, axis=-1)
        pair = first * cos - second * sin, second * cos + first * sin
        turned = jnp.stack(pair, axis=-1) if interleaved else jnp.concatenate(pair, axis=-1)
        return turned.reshape(x.shape).astype(x.dtype)
    # Both halves at once: a TPU takes two microseconds for each operation, however small.
    cos, sin = jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)
    return (wide * cos + jnp.roll(wide, turned_lanes // 2, axis=-1) * sin).astype(x.dtype)


def activated(
    x: jax.Array, activation: Activation, gated: bool, clamped: ClampedGate | None = None
) -> jax.Array:
    """Applies an activation to x [..., width], or to its first half, a gate for the second.

    A clamped gate takes the place of the activation.
    """
    if not gated:
        return ACTIVATIONS[activation](x)
    gate, up = jnp.split(x, 2, axis=-1)
    if clamped is not None:
        gate, up = jnp.minimum(gate, clamped.limit), jnp.clip(up, -clamped.limit, clamped.limit)
        return (up + 1) * gate * jax.nn.sigmoid(clamped.slope * gate)
    return ACTIVATIONS[activation](gate) * up


class MLP(nnx.Module):
    """The feed-forward layer. If gated, one kernel holds the gate and the up projection."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        width = config.intermediate_size * (2 if config.gated else 1)
        self.up = Linear(config.hidden_size, width, bias=config.mlp_bias, rngs=rngs)
        self.down = Linear(
            config.intermediate_size,
            config.hidden_size,
            bias=config.mlp_bias,
            rngs=rngs,
            summed=config.sums,
        )
        self.kind = config.activation, config.gated, config.clamped_gate

    def __call__(self, x: jax.Array, context: LayerContext) -> jax.Array:
        """Turns x [T, D] into [T, D]."""
        return self.down(self._inner(x, context), context.stacked)

    def terms(self, x: jax.Array, context: LayerContext) -> jax.Array:
        """Returns terms that add up to `self(x, context)`, see `Linear.terms`."""
        return self.down.terms(self._inner(x, context), context.stacked)

    def _inner(self, x: jax.Array, context: LayerContext) -> jax.Array:
        return activated(self.up(x, context.stacked), *self.kind)
