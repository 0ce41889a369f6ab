"""The configuration of a decoder: only the settings in which families differ."""

from dataclasses import dataclass
from typing import Literal

Activation = Literal["relu", "relu2", "gelu", "gelu_tanh", "silu"]
NormPlace = Literal["before", "after", "around", "residual"]


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
      qkv_bias: whether there is a bias on the query, key and value projections.
      out_bias: whether there is a bias on the attention's output projection.
      mlp_bias: whether there is a bias on the feed-forward projections.
      norm_bias: whether a layer norm has a bias.
      parallel: whether attention and feed-forward layer both read the layer's input.
      one_norm: whether they read it through one norm, if they are parallel.
      qk_norm: what of queries and keys is normalised: each head by the same weights ("head") or by
        weights of its own and without a bias ("each"), all heads together ("whole"), or nothing.
      attention_scale: factor on the scores; None for H**-0.5.
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
      stacks: number of layers in each stack of equal layers, first layers first; empty for one
        stack of all layers. No family sets it yet, and the loader fills one stack only.
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
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: Literal["head", "each", "whole"] | None = None
    attention_scale: float | None = None
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

    def __post_init__(self) -> None:
        if sum(self.layers_of_stacks) != self.num_layers:
            raise ValueError(f"stacks of {self.stacks} layers are not {self.num_layers} layers")

    @property
    def layers_of_stacks(self) -> tuple[int, ...]:
        """The number of layers in each stack."""
        return self.stacks or (self.num_layers,)

    @property
    def rope_tables(self) -> tuple[Rope, ...]:
        """The different rotary embeddings of the layers; empty if all use `rope`."""
        return tuple(dict.fromkeys(self.layer_ropes))

    @property
    def table_of_layers(self) -> tuple[int, ...]:
        """Which of `rope_tables` each layer uses; empty if all use `rope`."""
        return tuple(self.rope_tables.index(rope) for rope in self.layer_ropes)
