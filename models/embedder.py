"""The embedding of tokens and positions, which the decoder begins with."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from emsjax.engine.packing import PackedBatch
from emsjax.models.config import DecoderConfig
from emsjax.models.linear import Linear
from emsjax.models.shared_rows import Table, look_up, table_of
from emsjax.pallas_kernels.quantised import Weights, weights_of


class Embedder(nnx.Module):
    """Token embeddings, learned position embeddings, and projections to and from the embedding.

    Position embeddings exist only in models without a rotary embedding. Projections exist only if
    the token embedding is narrower than the hidden states.

    `models.quantised` turns the token embedding into int8 and adds `tokens_scale`.
    """

    quantisable: ClassVar[str] = "tokens"

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        width = config.embedding_size or config.hidden_size
        init = nnx.initializers.normal(0.02)
        self.tokens = nnx.Param(init(rngs.params(), (config.vocab_rows, width), jnp.float32))
        self.tokens_scale: nnx.Param | None = None
        rows = config.max_positions + config.position_offset
        self.positions = (
            nnx.Param(init(rngs.params(), (rows, config.hidden_size), jnp.float32))
            if config.rope is None
            else None
        )
        narrow, sizes = config.embedding_size is not None, (width, config.hidden_size)
        self.project_in = Linear(*sizes, bias=False, rngs=rngs) if narrow else None
        self.project_out = Linear(*sizes[::-1], bias=False, rngs=rngs) if narrow else None
        self.position_offset = config.position_offset
        self.scale = config.embedding_scale
        self.divided = config.shards > 1

    @property
    def weights(self) -> Weights:
        """The token embedding [V, E], together with its scale if it is quantised."""
        return weights_of(self, "tokens")

    @property
    def table(self) -> Table:
        """The token embedding, to look rows up in."""
        return table_of(self.weights, divided=self.divided)

    def __call__(self, batch: PackedBatch, dtype: jnp.dtype) -> jax.Array:
        """Returns the hidden states [T, D] before the first layer, in `dtype`."""
        x = look_up(self.table, batch.tokens).astype(dtype)
        if self.scale != 1:
            x = x * jnp.asarray(self.scale, dtype)
        if self.project_in is not None:
            x = self.project_in(x)
        if self.positions is not None:
            x = x + self.positions[...][batch.positions + self.position_offset].astype(dtype)
        return x
