"""A stand-in family, so that loading is tested without the computation of a model."""

import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import pytest
from flax import nnx

from emsjax.models.family import Family, WeightMap, rule


@dataclass(frozen=True)
class TinyConfig:
    layers: int
    width: int
    inner: int
    vocab: int
    heads: int
    kv_heads: int
    tied: bool

    @property
    def head(self) -> int:
        return self.width // self.heads


class TinyLM(nnx.Module):
    """A module with the parameters of a Llama and no computation."""

    def __init__(self, config: TinyConfig, *, rngs: nnx.Rngs, dtype: Any = None):
        del dtype

        def param(*shape: int) -> nnx.Param:
            return nnx.Param(nnx.initializers.normal()(rngs.params(), shape, jnp.float32))

        c = config
        qkv = (c.heads + 2 * c.kv_heads) * c.head
        self.embed = param(c.vocab, c.width)
        self.norm = param(c.width)
        self.blocks = nnx.Dict(
            qkv=param(c.layers, qkv, c.width),
            o=param(c.layers, c.width, c.heads * c.head),
            gate_up=param(c.layers, 2 * c.inner, c.width),
            down=param(c.layers, c.width, c.inner),
            norm1=param(c.layers, c.width),
            norm2=param(c.layers, c.width),
        )
        if not c.tied:
            self.head = param(c.vocab, c.width)


def _config(hf: Mapping[str, Any]) -> TinyConfig:
    return TinyConfig(
        hf["num_hidden_layers"],
        hf["hidden_size"],
        hf["intermediate_size"],
        hf["vocab_size"],
        hf["num_attention_heads"],
        hf["num_key_value_heads"],
        hf["tie_word_embeddings"],
    )


def _weights(config: TinyConfig) -> WeightMap:
    layer = "layers.{}."
    rules = {
        "embed": rule("embed_tokens.weight"),
        "norm": rule("norm.weight"),
        "blocks.qkv": rule(*(f"{layer}self_attn.{p}_proj.weight" for p in "qkv")),
        "blocks.o": rule(layer + "self_attn.o_proj.weight"),
        "blocks.gate_up": rule(layer + "mlp.gate_proj.weight", layer + "mlp.up_proj.weight"),
        "blocks.down": rule(layer + "mlp.down_proj.weight"),
        "blocks.norm1": rule(layer + "input_layernorm.weight"),
        "blocks.norm2": rule(layer + "post_attention_layernorm.weight"),
    }
    if not config.tied:
        rules["head"] = rule("lm_head.weight")
    shared = ("embed_tokens.weight", "lm_head.weight")
    return WeightMap(rules, (r".*rotary_emb\.inv_freq",), ("model.",), shared)


LLAMA = Family("llama", _config, _weights)


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the loader find only the stand-in family."""
    registry: Any = types.ModuleType("emsjax.models.registry")
    registry.FAMILIES = {"llama": LLAMA}
    decoder: Any = types.ModuleType("emsjax.models.decoder")
    decoder.DecoderLM = TinyLM
    monkeypatch.setitem(sys.modules, registry.__name__, registry)
    monkeypatch.setitem(sys.modules, decoder.__name__, decoder)
