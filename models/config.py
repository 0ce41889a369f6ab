"""The configuration of a decoder: the settings in which model families differ."""

from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Literal

from emsjax.shapes import round_up

Activation = Literal["relu", "relu2", "gelu", "gelu_tanh", "silu"]
Sums = Literal["in any order", "in order"]
NormPlace = Literal["before", "after", "around", "residual"]

# Each device's share of a divided vocabulary is a multiple of this, the lanes of a TPU's registers.
VOCAB_MULTIPLE = 128


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding.

    Attributes:
      inverse_frequencies: angle per position for each pair of lanes, after scaling; H / 2 of them,
        or fewer if only the first lanes of a head turn. Zeros turn nothing.
      attention_factor: factor on sine and cosine; other than 1 only for YaRN.
    """

    inverse_frequencies: tuple[float, ...]
    attention_factor: float = 1.0

    @property
    def still(self) -> "Rope":
        """A table of the same size that turns nothing, for a layer without positions."""
        return Rope((0.0,) * len(self.inverse_frequencies))


@dataclass(frozen=True)
class Experts:
    """A feed-forward layer made of experts, of which each row uses only a few.

    Attributes:
      number: E, the number of experts.
      per_row: how many of them a row uses.
      width: width of each expert.
      normalised: whether the shares of the experts that a row uses are scaled to a sum of 1.
      bias: whether the router and the projections of the experts have biases.
    """

    number: int
    per_row: int
    width: int
    normalised: bool
    bias: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.per_row <= self.number:
            raise ValueError(f"a row uses {self.per_row} of {self.number} experts")


@dataclass(frozen=True)
class ClampedGate:
    """A gate g for u that is (u + 1) * g * sigmoid(slope * g).

    Attributes:
      slope: the slope.
      limit: upper bound on g, and bound on the absolute value of u, applied first.
    """

    slope: float
    limit: float


@dataclass(frozen=True)
class DecoderConfig:
    """The configuration of a decoder-only transformer.

    Attributes:
      vocab_size: V.
      hidden_size: D.
      intermediate_size: width of the feed-forward layer.
      num_layers: L.
      num_heads: N, the number of query heads.
      num_kv_heads: K, the number of key/value heads.
      head_dim: H.
      max_positions: longest sequence that the model supports, in tokens.
      norm: kind of normalisation.
      norm_eps: epsilon of the normalisation.
      norm_offset: whether a norm multiplies by 1 + weight, in float32, instead of by weight.
      norm_place: what is normalised: the input of each sublayer ("before"), its output ("after"),
        both ("around"), or the sum of its input and output ("residual").
      final_norm: whether to normalise before the output projection.
      activation: activation of the feed-forward layer.
      gated: whether the feed-forward layer multiplies by a gate (SwiGLU).
      clamped_gate: the gate that takes the place of `activation`, if it is gated; None for none.
      experts: the experts that make up a feed-forward layer; None if it is plain.
      dense_layers: numbers of the layers that are plain although the others have experts.
      qkv_bias: whether there is a bias on the query, key and value projections.
      out_bias: whether there is a bias on the attention's output projection.
      mlp_bias: whether there is a bias on the feed-forward projections.
      norm_bias: whether a layer norm has a bias.
      parallel: whether attention and feed-forward layer both read the layer's input.
      one_norm: whether they read it through one norm, if they are parallel.
      qk_norm: what of queries and keys is normalised: each head by the same weights ("head") or by
        weights of its own and without a bias ("each"), all heads together ("whole"), or nothing.
      qkv_bound: bound on the absolute values of queries, keys and values before the rotation; None
        for none.
      attention_scale: factor on the scores; None for H**-0.5.
      sinks: whether each head has an additional score in the softmax, which adds no value.
      attention_soft_cap: soft cap of the scores; None for none.
      logit_soft_cap: soft cap of the logits; None for none.
      query_growth: (beta, length): a query at position p is multiplied by
        1 + beta * log(1 + floor(p / length)); None for no factor.
      residual_scale: factor on what a sublayer adds to the hidden states.
      logit_scale: factor on the logits.
      logit_bias: whether the logits have a bias.
      embedding_scale: factor on the token embedding, but not on the output projection.
      rope: rotary embedding; None means learned positions.
      rope_interleaved: whether rotation turns neighbouring lanes, not the two halves of a head.
      layer_ropes: rotary embedding of each layer, all of one size; empty if all layers use `rope`.
      position_offset: row of the table of learned positions that holds position 0.
      embedding_size: width of the token embedding if it differs from D and is projected to D and
        back; None if it is D.
      tied: whether the token embedding is also the output projection.
      windows: sliding window of each layer in tokens, 0 for none; empty if no layer has one.
      stacks: number of layers in each stack of equal layers, first layers first; empty for as few
        stacks as possible.
      shards: the number of devices that share the model. If there are several, heads and widths are
        those of one device, see `division`; `vocab_size` is always the whole vocabulary.
      ordered_sums: whether devices add their parts one after another, so that a row's result does
        not depend on its place among the rows.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    norm: Literal["rms", "layer"]
    norm_eps: float
    activation: Activation
    norm_offset: bool = False
    norm_place: NormPlace = "before"
    norm_bias: bool = True
    parallel: bool = False
    one_norm: bool = False
    final_norm: bool = True
    gated: bool = False
    clamped_gate: ClampedGate | None = None
    experts: Experts | None = None
    dense_layers: tuple[int, ...] = ()
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: Literal["head", "each", "whole"] | None = None
    qkv_bound: float | None = None
    attention_scale: float | None = None
    sinks: bool = False
    attention_soft_cap: float | None = None
    logit_soft_cap: float | None = None
    query_growth: tuple[float, float] | None = None
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    logit_bias: bool = False
    embedding_scale: float = 1.0
    rope: Rope | None = None
    rope_interleaved: bool = False
    layer_ropes: tuple[Rope, ...] = ()
    position_offset: int = 0
    embedding_size: int | None = None
    tied: bool = True
    windows: tuple[int, ...] = ()
    stacks: tuple[int, ...] = ()
    shards: int = 1
    ordered_sums: bool = False

    def __post_init__(self) -> None:
        if sum(self.layers_of_stacks) != self.num_layers:
            raise ValueError(f"stacks of {self.stacks} layers are not {self.num_layers} layers")

    @property
    def sums(self) -> Sums | None:
        """How the results of products whose inputs are divided are added; None for one device."""
        if self.shards == 1:
            return None
        return "in order" if self.ordered_sums else "in any order"

    @property
    def vocab_rows(self) -> int:
        """The rows of the embedding that one device holds: V, or whole blocks of 128 of a share."""
        if self.shards == 1:
            return self.vocab_size
        return round_up(-(-self.vocab_size // self.shards), VOCAB_MULTIPLE)

    @property
    def layers_of_stacks(self) -> tuple[int, ...]:
        """The number of layers in each stack."""
        runs = groupby(self.experts_of(layer) for layer in range(self.num_layers))
        return self.stacks or tuple(len(list(run)) for _, run in runs)

    @property
    def expert_share(self) -> float:
        """The part of a layer's experts that a row uses; 0 if there are none."""
        return self.experts.per_row / self.experts.number if self.experts else 0.0

    @property
    def experts_of_stacks(self) -> tuple[Experts | None, ...]:
        """The experts of the layers in each stack."""
        firsts = accumulate(self.layers_of_stacks[:-1], initial=0)
        return tuple(self.experts_of(first) for first in firsts)

    def experts_of(self, layer: int) -> Experts | None:
        """Returns the experts of a layer, or None if it has a plain feed-forward layer."""
        return None if layer in self.dense_layers else self.experts

    @property
    def rope_tables(self) -> tuple[Rope, ...]:
        """The different rotary embeddings of the layers; empty if all use `rope`."""
        return tuple(dict.fromkeys(self.layer_ropes))

    @property
    def table_of_layers(self) -> tuple[int, ...]:
        """Which of `rope_tables` each layer uses; empty if all use `rope`."""
        return tuple(self.rope_tables.index(rope) for rope in self.layer_ropes)
