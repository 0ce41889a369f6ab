"""The feed-forward layer of which each row uses only a few parts, its experts."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from emsjax.models.config import DecoderConfig, Experts
from emsjax.models.layer_context import LayerContext
from emsjax.models.mlp import activated
from emsjax.models.shared_rows import only_on_first, sum_of_shards
from emsjax.pallas_kernels.expert_matmul.api import expert_matmul
from emsjax.pallas_kernels.expert_matmul.tiles import Tiles, from_tiles, tiles_of, to_tiles
from emsjax.pallas_kernels.layer_matmul.api import matmul
from emsjax.pallas_kernels.quantised import Weights, weights_of


class ExpertLinear(nnx.Module):
    """Computes x @ kernel[e].T + bias[e] for the rows of each expert e. The kernel is [E, out, in].

    `models.quantised` turns the kernel into int8 and adds `kernel_scale`, or into 4 bits and adds
    `kernel_scales` and `kernel_offsets`.
    """

    quantisable: ClassVar[str] = "kernel"

    def __init__(self, num_experts: int, num_in: int, num_out: int, *, bias: bool, rngs: nnx.Rngs):
        init = nnx.initializers.normal(num_in**-0.5)
        self.kernel = nnx.Param(init(rngs.params(), (num_experts, num_out, num_in), jnp.float32))
        self.kernel_scale: nnx.Param | None = None
        self.kernel_scales: nnx.Param | None = None
        self.kernel_offsets: nnx.Param | None = None
        self.bias = nnx.Param(jnp.zeros((num_experts, num_out), jnp.float32)) if bias else None
        self.summed = False  # whether the devices' results will be added

    @property
    def weights(self) -> Weights:
        """The kernel, together with its scale if it is quantised."""
        return weights_of(self, "kernel")

    def __call__(self, x: jax.Array, layer: jax.Array, tiles: Tiles) -> jax.Array:
        """Turns x [X, Y, in] into [X, Y, out].

        Args:
          x: rows in tiles.
          layer: int32[], which kernels to use from a stack [L, E, out, in].
          tiles: the expert of each tile.
        """
        y = expert_matmul(x, self.weights, layer=layer, tiles=tiles)
        if self.bias is None:
            return y
        bias = self.bias[tiles.experts][:, None].astype(y.dtype)
        return y + (only_on_first(bias) if self.summed else bias)


class ExpertMLP(nnx.Module):
    """The feed-forward layer: a router chooses experts for each row, and their results are added.

    The router is too small to be quantised, and a choice should not depend on rounding.
    """

    def __init__(self, config: DecoderConfig, experts: Experts, *, rngs: nnx.Rngs):
        width, inner = config.hidden_size, experts.width
        init = nnx.initializers.normal(width**-0.5)
        self.router = nnx.Param(init(rngs.params(), (experts.number, width), jnp.float32))
        bias, up = experts.bias, inner * (2 if config.gated else 1)
        self.router_bias = nnx.Param(jnp.zeros((experts.number,), jnp.float32)) if bias else None
        self.up = ExpertLinear(experts.number, width, up, bias=bias, rngs=rngs)
        self.down = ExpertLinear(experts.number, inner, width, bias=bias, rngs=rngs)
        self.down.summed = config.shards > 1
        self.summed = config.sums
        self.experts = experts
        self.kind = config.activation, config.gated, config.clamped_gate

    def __call__(self, x: jax.Array, context: LayerContext) -> jax.Array:
        """Turns x [T, D] into [T, D]. Unused rows are sent to no expert."""
        batch, layer = context.batch, context.stacked
        assert layer is not None, "experts are always in a stack"
        shares, chosen = self._choose(x)
        used = batch.slot_ids < batch.kv_lens.shape[0]
        tiles = tiles_of(chosen, used, self.experts.number)
        up = self.up(to_tiles(x, tiles), layer, tiles)
        inner = activated(up, *self.kind)
        y = from_tiles(self.down(inner, layer, tiles), shares, tiles)
        return y if self.summed is None else sum_of_shards(y, self.summed)

    def terms(self, x: jax.Array, context: LayerContext) -> jax.Array:
        """Returns `self(x, context)` as [1, T, D], see `Linear.terms`."""
        return self(x, context)[None]

    def _choose(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the share [T, C] in float32 and the number of each row's experts."""
        logits = matmul(x, self.router[...], jnp.dtype(jnp.float32))
        if self.router_bias is not None:
            logits = logits + self.router_bias[...][None].astype(jnp.float32)
        shares, chosen = jax.lax.top_k(jax.nn.softmax(logits, axis=-1), self.experts.per_row)
        if self.experts.normalised:
            shares = shares / shares.sum(axis=-1, keepdims=True)
        return shares, chosen.astype(jnp.int32)
