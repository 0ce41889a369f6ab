"""The architectures that can be read from GGUF, and how llama.cpp's converter stores each.

Names are GGUF's. What a file does not say follows from llama.cpp's code for the architecture.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

_LLAMA = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA3 = _LLAMA | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_PHI3 = _LLAMA | {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}


@dataclass(frozen=True)
class Architecture:
    """How the models of one architecture are stored.

    Attributes:
      model_type: the Hugging Face model type.
      names: a layer's tensors, and their Hugging Face names.
      permuted: whether the rows of queries and keys are in the order of rotary pairs.
      norm_offset: what the converter added to the weights of norms.
      turns_part: whether only a part of each head may be turned by its position.
      keys: metadata that only this architecture has and that is read.
    """

    model_type: str
    names: Mapping[str, str] = field(default_factory=lambda: MappingProxyType(_LLAMA))
    permuted: bool = False
    norm_offset: float = 0.0
    turns_part: bool = False
    keys: frozenset[str] = frozenset()


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "llama": Architecture("llama", permuted=True),
        "qwen2": Architecture("qwen2"),
        "qwen3": Architecture("qwen3"),
        "gemma3": Architecture(
            "gemma3_text",
            _GEMMA3,
            norm_offset=1.0,
            keys=frozenset(
                {
                    *("attention.sliding_window", "attention.sliding_window_pattern"),
                    "rope.freq_base_swa",
                }
            ),
        ),
        "phi3": Architecture(
            "phi3",
            _PHI3,
            turns_part=True,
            keys=frozenset({"attention.sliding_window", "rope.scaling.attn_factor"}),
        ),
        "smollm3": Architecture("smollm3", permuted=True),
    }
)
