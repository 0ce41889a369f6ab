"""The configuration of a decoder: only the settings in which families differ."""

from dataclasses import dataclass
from typing import Literal

Activation = Literal["relu", "gelu", "gelu_tanh", "silu"]


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding.

    Attributes:
      inverse_frequencies: angle per position for each pair of lanes, [H / 2], after scaling.
      attention_factor: factor on sine and cosine; other than 1 only for YaRN.
    """

    inverse_frequencies: tuple[float, ...]
    attention_factor: float = 1.0


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
      pre_norm: whether to normalise before each sublayer; False normalises after the residual sum.
      final_norm: whether to normalise before the output projection.
      activation: activation of the feed-forward layer.
      gated: whether the feed-forward layer multiplies by a gate (SwiGLU).
      qkv_bias: whether there is a bias on the query, key and value projections.
      out_bias: whether there is a bias on the attention's output projection.
      mlp_bias: whether there is a bias on the feed-forward projections.
      qk_norm: whether each query and key head has an RMS norm.
      rope: rotary embedding; None means learned positions.
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
    pre_norm: bool = True
    final_norm: bool = True
    gated: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    rope: Rope | None = None
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
