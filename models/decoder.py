"""The packed forward pass: one decoder for all families, a loop over stacks of equal layers."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from emsjax.engine.model import Inner, Pass, SomeTokens, View
from emsjax.engine.packing import PackedBatch
from emsjax.engine.sizes import Sizes
from emsjax.models.block import Block
from emsjax.models.config import DecoderConfig
from emsjax.models.context import cache_spec, layer_context
from emsjax.models.embedder import Embedder
from emsjax.models.experts import ExpertLinear
from emsjax.models.held import bytes_held, numbers_held
from emsjax.models.layer_context import LayerContext
from emsjax.models.linear import Linear
from emsjax.models.norms import norm
from emsjax.models.output import logits_of
from emsjax.models.shared_rows import Table, table_of
from emsjax.models.sizes import exchanges
from emsjax.models.stack import Carry, make_stack, run_stack, seen_by_layer
from emsjax.pallas_kernels.cache_update.api import move_kv
from emsjax.pallas_kernels.int8_cache import Cache, int8_cache_spec
from emsjax.pallas_kernels.kv_rows import LANES
from emsjax.pallas_kernels.quantised import Weights


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
        stacks = [make_stack(config, experts, layers, rngs) for layers, experts in sizes]
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
        looked_up = bytes_held([*tables, embedder.positions])
        weights_bytes = bytes_held(nnx.state(self))
        experts = [m for _, m in nnx.iter_modules(self) if isinstance(m, ExpertLinear)]
        expert_bytes, share = sum(bytes_held(nnx.state(m)) for m in experts), config.expert_share
        unused = sum(numbers_held(nnx.state(m)) * (1 - share) for m in experts)
        numbers = numbers_held(nnx.state(self.blocks)) - unused
        width = config.embedding_size or config.hidden_size
        return Sizes(
            weights_bytes=weights_bytes,
            read_bytes=weights_bytes - looked_up - expert_bytes,
            row_flops=round(2 * numbers),
            logit_flops=2 * config.vocab_rows * width,
            token_bytes=bytes_held(cached) // LANES,
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
          keep: the layers whose inputs are returned, none before `start`; see `Model.run`.
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
        carry, first = Carry(start.states, cache, kept), 0
        all_windows, all_sinks = seen_by_layer(self.windows, view, self.num_layers)
        for stack, layers in zip(self.stacks, self.config.layers_of_stacks, strict=True):
            here = slice(first, first + layers)
            seen, tables = (all_windows[here], all_sinks[here]), self.config.table_of_layers[here]
            # No loop is compiled for a stack of which no layer runs.
            if some := range(max(start.layer - first, 0), layers):
                carry = run_stack(
                    stack, some, carry, context, first, seen, tables, keep, differentiable
                )
            first += layers
        x, cache, kept, _ = carry
        kept = tuple(
            x if at == self.num_layers else found for at, found in zip(keep, kept, strict=True)
        )
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
