"""The feed-forward layer and its activations."""

from collections.abc import Callable
from types import MappingProxyType

import jax
import jax.numpy as jnp
from flax import nnx

from emsjax.models.config import Activation, ClampedGate, DecoderConfig
from emsjax.models.layer_context import LayerContext
from emsjax.models.linear import Linear

ACTIVATIONS: MappingProxyType[str, Callable[[jax.Array], jax.Array]] = MappingProxyType(
    {
        "relu": jax.nn.relu,
        "relu2": lambda x: jnp.square(jax.nn.relu(x)),
        "gelu": lambda x: jax.nn.gelu(x, approximate=False),
        "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
        "silu": jax.nn.silu,
    }
)


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
