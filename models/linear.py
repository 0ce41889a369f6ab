"""A linear layer, whose kernel may be quantised and lie in a stack of all layers."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from emsjax.models.config import Sums
from emsjax.models.shared_rows import sum_of_shards
from emsjax.pallas_kernels.layer_matmul.api import layer_matmul, layer_sums, matmul
from emsjax.pallas_kernels.quantised import Weights, weights_of


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
