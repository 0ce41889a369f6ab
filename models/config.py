"""The configuration of a decoder: what differs between the families, and nothing else."""

from dataclasses import dataclass
from typing import Literal

Activation = Literal["relu", "gelu", "gelu_tanh", "silu"]


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding.

    Attributes:
      inverse_frequencies: one angle per token and pair of lanes, [H / 2], scaling included.
      attention_factor: factor on both sine and cosine (YaRN; 1 elsewhere).
    """

    inverse_frequencies: tuple[float, ...]
    attention_factor: float = 1.0


@dataclass(frozen=True)
class DecoderConfig:
    """A decoder-only transformer.

    Attributes:
      vocab_size: V.
      hidden_size: D.
      intermediate_size: width of the feed-forward layer.
      num_layers: L.
      num_heads: N, query heads.
      num_kv_heads: K, key/value heads.
      head_dim: H.
      max_positions: longest sequence the model was made for.
      norm: kind of normalisation.
      norm_eps: its epsilon.
      pre_norm: normalise before each sublayer; False normalises after the residual sum.
      final_norm: normalise before the output projection.
      activation: of the feed-forward layer.
      gated: the feed-forward layer multiplies by a gate (SwiGLU).
      qkv_bias: bias on the query, key and value projections.
      out_bias: bias on the attention's output projection.
      mlp_bias: bias on the feed-forward projections.
      qk_norm: RMS norm on each query and key head.
      rope: rotary embedding; None means learned positions.
      position_offset: learned positions start at this row of their table.
      embedding_size: width of the token embedding where it is not D, with projections.
      tied: the output projection is the token embedding.
      windows: sliding window of each layer in tokens, 0 for none; empty where no layer has one.
      stacks: how many layers each stack of equal layers has, first layers first; empty for one
        stack of all.
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
