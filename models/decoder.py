"""The packed forward pass: one decoder for all families, with a scan over stacked layers."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from emsjax.engine.model import Inner, Pass, SomeTokens, View
from emsjax.engine.packing import PackedBatch
from emsjax.engine.sizes import Sizes
from emsjax.models.config import DecoderConfig, Experts
from emsjax.models.context import cache_spec, layer_context
from emsjax.models.embedder import Embedder
from emsjax.models.experts import ExpertLinear, ExpertMLP
from emsjax.models.layers import (
    MLP,
    LayerContext,
    Linear,
    RMSNorm,
    heads_norm,
    norm,
    normed,
    normed_heads,
    rotate,
)
from emsjax.models.output import logits_of
from emsjax.models.residual import sums_wait, total, total_and_norm
from emsjax.models.shared_rows import Table, table_of
from emsjax.models.sizes import exchanges
from emsjax.pallas_kernels.backends import target_platform
from emsjax.pallas_kernels.cache_update.api import move_kv
from emsjax.pallas_kernels.int8_cache import Cache, int8_cache_spec
from emsjax.pallas_kernels.kv_rows import LANES
from emsjax.pallas_kernels.norms import HeadNorms
from emsjax.pallas_kernels.quantised import Weights, bits_of


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


class Block(nnx.Module):
    """One layer: attention and feed-forward, each with a norm and a residual."""

    def __init__(self, config: DecoderConfig, experts: Experts | None, *, rngs: nnx.Rngs):
        width, place = config.hidden_size, config.norm_place
        first, last = place != "after", place in ("after", "around")
        self.attention_norm = norm(config, width) if first else None
        self.attention = Attention(config, rngs=rngs)
        self.attention_out_norm = norm(config, width) if last else None
        self.mlp_norm = norm(config, width) if first and not config.one_norm else None
        self.mlp = ExpertMLP(config, experts, rngs=rngs) if experts else MLP(config, rngs=rngs)
        self.mlp_out_norm = norm(config, width) if last else None
        self.of_sum = place == "residual"
        self.parallel, self.one_norm = config.parallel, config.one_norm
        self.residual_scale = config.residual_scale
        # Whether sums may wait for the next norm, see `models.residual`.
        self.patient = place == "before" and not (config.parallel or config.one_norm)
        self.patient &= config.residual_scale == 1

    def __call__(
        self, x: jax.Array, cache: Cache, context: LayerContext
    ) -> tuple[jax.Array, Cache]:
        """Returns x [T, D] and the cache after this layer."""
        if self.of_sum:
            mixed, cache = self.attention(x, cache, context)
            x = normed(self.attention_norm, x + mixed)
            return normed(self.mlp_norm, x + self.mlp(x, context)), cache
        normal = normed(self.attention_norm, x)
        mixed, cache = self.attention(normal, cache, context)
        attended = x + self._scaled(normed(self.attention_out_norm, mixed))
        if not self.one_norm:
            normal = normed(self.mlp_norm, x if self.parallel else attended)
        mixed = self.mlp(normal, context)
        return attended + self._scaled(normed(self.mlp_out_norm, mixed)), cache

    def after_norm(
        self, x: jax.Array, normal: jax.Array, cache: Cache, context: LayerContext
    ) -> tuple[jax.Array, jax.Array, Cache]:
        """Does what `__call__` does, without the first norm and the last sum.

        Args:
          x: [T, D].
          normal: its norm.
          cache: K/V.
          context: of the layer. The factors of the norms are those of the whole stack.

        Returns:
          x [T, D], the terms that are still to be added to it, see `Linear.terms`, and the cache.
        """
        terms, cache = self.attention.terms(normal, cache, context)
        x, normal = total_and_norm(x, terms, self.mlp_norm, context.stacked)
        return x, self.mlp.terms(normal, context), cache

    def _scaled(self, added: jax.Array) -> jax.Array:
        return added if self.residual_scale == 1 else added * self.residual_scale


def _read_in_place(waits: bool, packs: bool) -> Callable[[tuple, object], bool]:
    """Returns which parameters kernels read in the stack: those of products, and of some norms.

    Args:
      waits: whether sums wait for the next norm.
      packs: whether a kernel normalises queries and keys.
    """
    norms = {"attention_norm", "mlp_norm"} if waits else set()
    norms |= {"q_norm", "k_norm"} if packs else set()

    def is_read(path: tuple, value: object) -> bool:
        del value
        return str(path[-1]).startswith("kernel") or not norms.isdisjoint(path)

    return is_read


# The sliding window of a layer without one, next to layers with one.
UNLIMITED = jnp.iinfo(jnp.int32).max // 2


class _Carry(NamedTuple):
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


class DecoderLM(nnx.Module):
    """A causal language model over packed rows.

    `blocks` holds stacks of equal layers, with parameters [layers, ...]. It is a list of stacks, or
    the stack itself if there is only one.

    Attributes:
      kv_dtype: "int8" for an int8 K/V cache; None for one in the dtype of the activations. May be
        changed before the model is used.
    """

    kv_dtype: str | None = None

    def __init__(
        self, config: DecoderConfig, *, rngs: nnx.Rngs, dtype: jax.typing.DTypeLike = jnp.float32
    ):
        """Makes a model with random weights.

        Args:
          config: the shape of the model.
          rngs: for the weights, which are float32 until a checkpoint replaces them.
          dtype: type of the activations. Embedding, norms and biases may be stored in another one,
            the kernels of the layers may not.
        """
        self.config = config
        self.dtype = jnp.dtype(dtype)
        self.embedder = Embedder(config, rngs=rngs)
        sizes = zip(config.layers_of_stacks, config.experts_of_stacks, strict=True)
        stacks = [_make_stack(config, experts, layers, rngs) for layers, experts in sizes]
        self.blocks = stacks[0] if len(stacks) == 1 else nnx.List(stacks)
        self.final_norm = norm(config, config.hidden_size) if config.final_norm else None
        width = config.embedding_size or config.hidden_size
        self.head = None if config.tied else Linear(width, config.vocab_rows, bias=False, rngs=rngs)
        bias = jnp.zeros((config.vocab_size,), jnp.float32)
        self.logit_bias = nnx.Param(bias) if config.logit_bias else None

    @property
    def stacks(self) -> Sequence[Block]:
        """The stacks of equal layers, first layers first."""
        return list(self.blocks) if self.config.layers_of_stacks[1:] else [self.blocks]

    @property
    def vocab_size(self) -> int:
        """V, the number of entries in the vocabulary."""
        return self.config.vocab_size

    @property
    def max_positions(self) -> int:
        """The longest sequence the model was made for, in tokens."""
        return self.config.max_positions

    @property
    def windows(self) -> tuple[int, ...]:
        """Sliding window of each layer in tokens; 0 for no window, empty if no layer has one."""
        return self.config.windows

    @property
    def num_layers(self) -> int:
        """The number of layers."""
        return self.config.num_layers

    @property
    def hidden_size(self) -> int:
        """D, the width of the hidden states between layers."""
        return self.config.hidden_size

    @property
    def intermediate_size(self) -> int:
        """Width of the feed-forward layers."""
        return self.config.intermediate_size * self.config.shards

    @property
    def embedding_kernel(self) -> Weights:
        """The token embedding [V, E], with further rows if devices share it."""
        return self.embedder.weights

    @property
    def embedding_table(self) -> Table:
        """The token embedding, to look rows up in."""
        return self.embedder.table

    @property
    def output_kernel(self) -> Weights:
        """The matrix that turns hidden states into logits, [V, E]; the embedding if tied."""
        return self.embedding_kernel if self.head is None else self.head.weights

    @property
    def output_table(self) -> Table:
        """The matrix that turns hidden states into logits, which devices may share."""
        return table_of(self.output_kernel, divided=self.embedder.divided)

    @property
    def sizes(self) -> Sizes:
        """The bytes and operations of a step, see `Sizes`; works with shapes instead of weights.

        If devices share the model, they are those of one device.
        """
        config, cached = self.config, self.cache_spec(1, LANES)
        # A tied embedding is read in full for the logits, so it is no table of looked-up rows.
        embedder = self.embedder
        tables = [] if config.tied else [embedder.tokens, embedder.tokens_scale]
        looked_up = _nbytes([*tables, embedder.positions])
        weights_bytes = _nbytes(nnx.state(self))
        experts = [m for _, m in nnx.iter_modules(self) if isinstance(m, ExpertLinear)]
        expert_bytes, share = sum(_nbytes(nnx.state(m)) for m in experts), config.expert_share
        numbers = _size(self.blocks) - sum(_size(m) * (1 - share) for m in experts)
        width = config.embedding_size or config.hidden_size
        return Sizes(
            weights_bytes=weights_bytes,
            read_bytes=weights_bytes - looked_up - expert_bytes,
            row_flops=round(2 * numbers),
            logit_flops=2 * config.vocab_rows * width,
            token_bytes=_nbytes(cached) // LANES,
            token_flops=4 * config.num_layers * config.num_heads * config.head_dim,
            itemsize=self.dtype.itemsize,
            expert_bytes=expert_bytes,
            expert_share=share,
            devices=config.shards,
            exchanges=exchanges(config, self.dtype.itemsize),
        )

    def cache_spec(self, num_slots: int, capacity: int) -> Any:
        """Returns the shape [L, B, S, R, 128] and type of the K/V cache for B slots of S tokens.

        It is an `Int8Cache` of shapes if `kv_dtype` is "int8".
        """
        config = self.config
        if self.kv_dtype is None:
            return cache_spec(config, self.dtype, num_slots, capacity)
        heads = config.num_kv_heads, config.head_dim
        return int8_cache_spec(config.num_layers, num_slots, capacity, *heads)

    def __call__(
        self, batch: PackedBatch, cache: Cache, *, max_q_len: int
    ) -> tuple[jax.Array, Cache]:
        """Runs the packed rows through all layers.

        Args:
          batch: the rows, see `PackedBatch`.
          cache: K/V as described by `cache_spec`. The rows' K/V are written after each slot's
            tokens.
          max_q_len: static bound on the rows of one slot.

        Returns:
          The hidden states of all packed rows [T, E], normalised and as wide as the embedding,
          ready for the output projection; and the updated cache.
        """
        done = self.run(batch, cache, max_q_len=max_q_len)
        return done.hidden, done.cache

    def run(
        self,
        batch: PackedBatch,
        cache: Cache,
        *,
        max_q_len: int,
        start: Inner | None = None,
        keep: Sequence[int] = (),
        view: View | None = None,
    ) -> Pass:
        """Runs the packed rows through all layers, or through the last ones.

        Args:
          batch: the rows.
          cache: as for `__call__`.
          max_q_len: as for `__call__`.
          start: hidden states of the rows to begin with; None begins with the tokens' embedding.
          keep: the layers whose inputs are returned, none before `start`.
          view: see `Model.run`.
        """
        context = layer_context(self.config, self.dtype, batch, cache, max_q_len)
        start = Inner(self.embedder(batch, self.dtype), 0) if start is None else start
        return self.run_layers(start, cache, context, keep=keep, view=view)

    def run_layers(
        self,
        start: Inner,
        cache: Any,
        context: LayerContext,
        *,
        keep: Sequence[int] = (),
        view: View | None = None,
        differentiable: bool = False,
    ) -> Pass:
        """Runs rows through the layers from `start` on; `run` with any attention.

        Args:
          start: the hidden states of the rows.
          cache: what `context` writes and attends to.
          context: what the layers share.
          keep: the layers whose inputs are returned.
          view: see `Model.run`.
          differentiable: whether the loop over layers shall have derivatives, for which it keeps
            the hidden states between layers.
        """
        kept = tuple(jnp.zeros_like(start.states) for _ in keep)
        carry, first = _Carry(start.states, cache, kept), 0
        all_windows, all_sinks = _seen(self.windows, view, self.num_layers)
        for stack, layers in zip(self.stacks, self.config.layers_of_stacks, strict=True):
            here = slice(first, first + layers)
            seen, tables = (all_windows[here], all_sinks[here]), self.config.table_of_layers[here]
            # No loop is compiled for a stack of which no layer runs.
            if some := range(max(start.layer - first, 0), layers):
                carry = _run_stack(
                    stack, some, carry, context, first, seen, tables, keep, differentiable
                )
            first += layers
        x, cache, kept, _ = carry
        x = x if self.final_norm is None else self.final_norm(x)
        project_out = self.embedder.project_out
        hidden = x if project_out is None else project_out(x)
        return Pass(hidden, cache, jnp.concatenate(kept, axis=1) if kept else None)

    def move_kv(
        self, cache: Cache, sources: jax.Array, targets: jax.Array, moved: jax.Array
    ) -> Cache:
        """Moves the K/V of tokens within their slots, in all layers; see `Model.move_kv`."""
        return move_kv(cache, sources, targets, moved)

    def logits(self, hidden: jax.Array, some: SomeTokens | None = None) -> jax.Array:
        """Turns hidden states [W, E] into float32 logits [W, V], or [W, Vd] for some tokens.

        If devices share the model, each one returns its part of the vocabulary, padded with -inf.
        """
        config = self.config
        bias = None if self.logit_bias is None else self.logit_bias[...]
        if some is not None and bias is not None:
            bias = bias[some.token_ids]
        return logits_of(
            hidden,
            self.output_table if some is None else some.head,
            self.vocab_size,
            bias=bias,
            scale=config.logit_scale,
            soft_cap=config.logit_soft_cap,
        )


def _make_stack(
    config: DecoderConfig, experts: Experts | None, layers: int, rngs: nnx.Rngs
) -> Block:
    """Returns a stack of equal layers, with parameters [layers, ...]."""
    return nnx.vmap(lambda rngs: Block(config, experts, rngs=rngs))(rngs.split(layers))


def _run_stack(
    stack: Block,
    layers: range,
    carry: _Carry,
    context: LayerContext,
    first: int,
    seen: tuple[tuple[int, ...], tuple[int, ...]],
    tables: tuple[int, ...],
    keep: Sequence[int],
    differentiable: bool,
) -> _Carry:
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
      differentiable: whether the loop shall have derivatives.
    """
    # The loop does not slice the kernels. A product that reads its layer's part of the stack in
    # place saves a copy of it.
    waits = stack.patient and not differentiable and sums_wait(stack.attention_norm, carry.x)
    packs = context.attend_packed is not None and stack.attention.packs
    block_def, kernels, others = nnx.split(stack, _read_in_place(waits, packs), ...)
    windows, sinks = map(_by_layer, seen, (UNLIMITED, 0))

    def run_layer(stacked: jax.Array, carry: _Carry) -> _Carry:
        mine, window, sink_tokens, table = jax.tree.map(
            lambda x: jax.lax.dynamic_index_in_dim(
                x, stacked, keepdims=False, allow_negative_indices=False
            ),
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
            x, normal = total_and_norm(x, carry.terms, block.attention_norm, stacked)
        kept = tuple(
            jnp.where(layer == at, x, before) for at, before in zip(keep, carry.kept, strict=True)
        )
        if waits:
            x, terms, cache = block.after_norm(x, normal, carry.cache, here)
            return _Carry(x, cache, kept, terms)
        x, cache = block(x, carry.cache, here)
        return _Carry(x, cache, kept)

    # A scan over the layers' numbers would look each of them up, in a launch of its own.
    table_of_layer = jnp.asarray(tables, jnp.int32) if tables else None
    bounds = layers.start, layers.stop
    # With bounds that are known to Python, JAX makes a loop that has derivatives.
    start, stop = bounds if differentiable else map(jnp.int32, bounds)
    if waits:
        carry = carry._replace(terms=carry.x[None])
        waiting = jax.eval_shape(run_layer, jnp.int32(layers.start), carry).terms
        carry = carry._replace(terms=jnp.zeros(waiting.shape, waiting.dtype))
    done = jax.lax.fori_loop(start, stop, run_layer, carry)
    return done._replace(x=total(done.x, done.terms), terms=None)


class _ByLayer(NamedTuple):
    """A number of each layer: an array if they differ, else the one of all layers."""

    of_layer: jax.Array | None
    of_all: int | None


def _by_layer(numbers: tuple[int, ...], none: int) -> _ByLayer:
    """Returns the numbers, of which 0 stands for none.

    The scan passes one number per layer, so a layer without gets `none`.
    """
    if len(set(numbers)) <= 1:
        return _ByLayer(None, (numbers[0] or None) if numbers else None)
    return _ByLayer(jnp.asarray([n or none for n in numbers], jnp.int32), None)


def _seen(
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


def _size(module: nnx.Module) -> int:
    return sum(math.prod(_own_shape(x)) for x in jax.tree.leaves(nnx.state(module)))


def _nbytes(part: Any) -> int:
    return sum(math.prod(_own_shape(x)) * bits_of(x.dtype) for x in jax.tree.leaves(part)) // 8


def _own_shape(array: Any) -> tuple[int, ...]:
    """Returns the shape of what one device holds of an array, or of an array's shape."""
    place = getattr(array, "sharding", None)
    return array.shape if place is None else place.shard_shape(array.shape)
