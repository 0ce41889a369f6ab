"""A stack of equal layers: one loop whose trips differ only in the layer's number."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from emsjax.engine.model import View
from emsjax.models.block import Block
from emsjax.models.config import DecoderConfig, Experts
from emsjax.models.layer_context import LayerContext
from emsjax.models.residual import sums_wait, total, total_and_norm

# The sliding window of a layer without one, beside layers that have one.
UNLIMITED = jnp.iinfo(jnp.int32).max // 2
# The norms of the residual stream and of what is added to it.
NORMS = {"attention_norm", "attention_out_norm", "mlp_norm", "mlp_out_norm"}


class Carry(NamedTuple):
    """What one layer passes on to the next.

    Attributes:
      x: [T, D], the hidden states.
      cache: K/V.
      kept: the inputs [T, D] of the layers that are kept.
      terms: [P, at least T, D], what is still to be added to x, see `models.residual`; None for
        nothing.
    """

    x: jax.Array
    cache: Any
    kept: tuple[jax.Array, ...]
    terms: jax.Array | None = None


def make_stack(
    config: DecoderConfig, experts: Experts | None, layers: int, rngs: nnx.Rngs
) -> Block:
    """Returns a stack of equal layers, with parameters [layers, ...]."""
    return nnx.vmap(lambda rngs: Block(config, experts, rngs=rngs))(rngs.split(layers))


def run_stack(
    stack: Block,
    layers: range,
    carry: Carry,
    context: LayerContext,
    first: int,
    seen: tuple[tuple[int, ...], tuple[int, ...]],
    tables: tuple[int, ...],
    keep: Sequence[int],
    differentiable: bool,
) -> Carry:
    """Runs some layers of a stack of equal layers.

    Args:
      stack: the layers, with parameters [layers, ...].
      layers: the layers of the stack to run.
      carry: hidden states, cache and kept inputs.
      context: what the layers share.
      first: index of the stack's first layer in the cache.
      seen: sliding window of each layer of the stack, or empty; and its sink tokens, or empty.
      tables: rotary table of each layer of the stack, or empty.
      keep: the layers whose inputs are kept.
      differentiable: whether the loop needs derivatives.
    """
    # The loop does not slice the kernels: a product reads its layer's part of the stack in place,
    # which saves a copy.
    waits = stack.patient and not differentiable and sums_wait(stack.attention_norm, carry.x)
    packs = context.attend_packed is not None and stack.attention.packs
    block_def, kernels, others = nnx.split(stack, _read_in_place(waits, packs), ...)
    windows, sinks = map(_by_layer, seen, (UNLIMITED, 0))

    def run_layer(stacked: jax.Array, carry: Carry) -> Carry:
        mine, window, sink_tokens, table = jax.tree.map(
            lambda x: jax.lax.dynamic_index_in_dim(x, stacked, keepdims=False),
            (others, windows.of_layer, sinks.of_layer, table_of_layer),
        )
        block = nnx.merge(block_def, kernels, mine)
        layer = first + stacked
        here = context._replace(
            layer=layer,
            stacked=stacked,
            window=windows.of_all if window is None else window,
            sink_tokens=sinks.of_all if sink_tokens is None else sink_tokens,
            table=table,
        )
        x = normal = carry.x
        if waits:
            norms = block.attention_norm, stacked, block.mlp_out_norm
            x, normal = total_and_norm(x, carry.terms, *norms, lag=1)
        kept = tuple(
            jnp.where(layer == at, x, before) for at, before in zip(keep, carry.kept, strict=True)
        )
        if waits:
            x, terms, cache = block.after_norm(x, normal, carry.cache, here)
            return Carry(x, cache, kept, terms)
        x, cache = block(x, carry.cache, here)
        return Carry(x, cache, kept)

    # A scan over the layers' numbers would look each of them up, in a launch of its own.
    table_of_layer = jnp.asarray(tables, jnp.int32) if tables else None
    bounds = layers.start, layers.stop
    # JAX can differentiate a loop only if its bounds are Python numbers.
    start, stop = bounds if differentiable else map(jnp.int32, bounds)
    if waits:
        carry = carry._replace(terms=carry.x[None])
        waiting = jax.eval_shape(run_layer, jnp.int32(layers.start), carry).terms
        carry = carry._replace(terms=jnp.zeros(waiting.shape, waiting.dtype))
    done = jax.lax.fori_loop(start, stop, run_layer, carry)
    x = total(done.x, done.terms, stack.mlp_out_norm, jnp.int32(layers.stop - 1))
    return done._replace(x=x, terms=None)


def _read_in_place(waits: bool, packs: bool) -> Callable[[tuple, object], bool]:
    """Returns which parameters kernels read in the stack: those of products, and of some norms.

    Args:
      waits: whether sums wait for the next norm.
      packs: whether a kernel normalises queries and keys.
    """
    norms = NORMS if waits else set()
    norms = norms | ({"q_norm", "k_norm"} if packs else set())

    def is_read(path: tuple, value: object) -> bool:
        del value
        return str(path[-1]).startswith("kernel") or not norms.isdisjoint(path)

    return is_read


class _ByLayer(NamedTuple):
    """A number for each layer: an array if they differ, else one number for all layers."""

    of_layer: jax.Array | None
    of_all: int | None


def _by_layer(numbers: tuple[int, ...], none: int) -> _ByLayer:
    """Returns the numbers, in which 0 stands for none and becomes `none` beside others."""
    if len(set(numbers)) <= 1:
        return _ByLayer(None, (numbers[0] or None) if numbers else None)
    return _ByLayer(jnp.asarray([n or none for n in numbers], jnp.int32), None)


def seen_by_layer(
    windows: tuple[int, ...], view: View | None, num_layers: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns each layer's window and sink tokens, 0 or empty for none."""
    if view is None:
        return windows, ()
    own = windows or (0,) * num_layers
    wider = [not 0 < window <= view.window for window in own]
    return (
        tuple(view.window if w else window for w, window in zip(wider, own, strict=True)),
        tuple(view.sink_tokens if w else 0 for w in wider),
    )
