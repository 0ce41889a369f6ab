"""Reads the form of an EAGLE head from the configuration beside it.

The formats are those of EAGLE's own repository (SafeAILab), of SpecForge and TensorRT Model
Optimizer, which write the same tensors, and of speculators, whose configuration is nested.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from emsjax.errors import UserError, foreign
from emsjax.loading.head_kind import EAGLE_3, MIDLAYER
from emsjax.loading.hf.config import complete_config
from emsjax.loading.hf.numbers import check_numbers, check_together
from emsjax.models.config import DecoderConfig
from emsjax.models.eagle_head import EagleConfig
from emsjax.models.llama import llama_config

# What a head's layers are made from. All other keys describe training or the target.
_LAYER_KEYS = frozenset(
    {
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim"),
        *("num_attention_heads", "num_key_value_heads", "rms_norm_eps", "hidden_act"),
        *("max_position_embeddings", "rope_theta", "rope_scaling", "rope_parameters"),
    }
)
_IDS = "eagle_aux_hidden_state_layer_ids"


class Form(NamedTuple):
    """What a head is, as far as its own files say.

    Attributes:
      config: its form.
      layer_ids: the target's layers whose inputs it reads; None for EAGLE's own choice, or for its
        final states if it is an EAGLE-1 head.
      architectures: class names of the model it was trained for; empty if it does not say.
      layer: the checkpoint's name for the first layer.
    """

    config: EagleConfig
    layer_ids: tuple[int, ...] | None
    architectures: tuple[str, ...]
    layer: str


def read_form(kind: str, config: Mapping[str, Any], names: frozenset[str], directory: Path) -> Form:
    """Returns the form of a head.

    Args:
      kind: `EAGLE_1` or `EAGLE_3`.
      config: its `config.json`.
      names: the names of its tensors, without prefix.
      directory: where it is, for messages.

    Raises:
      UserError: the configuration is damaged or asks for what is not supported.
    """
    with foreign(f"{directory / 'config.json'} is damaged", "download the head again."):
        return _read(kind, config, names, str(directory / "config.json"))


def _read(kind: str, config: Mapping[str, Any], names: frozenset[str], origin: str) -> Form:
    nested = config.get("transformer_layer_config")
    given: Mapping[str, Any] = config if nested is None else nested
    third = kind == EAGLE_3
    layer = MIDLAYER if any(name.startswith(f"{MIDLAYER}.") for name in names) else "layers.0"
    layers = layer_sizes(given, nested is not None, names, layer, origin)
    extra = {**config, **(config.get("eagle_config") or {})}
    ids = _layer_ids(config)
    made = EagleConfig(
        layers=layers,
        fused=(3 if ids is None else len(ids)) if third else 0,
        target_size=read_size(config, "target_hidden_size", layers.hidden_size),
        head_size=read_size(config, "draft_vocab_size", layers.vocab_size) if third else 0,
        bias="fc.bias" in names,
        norm_of_all=bool(extra.get("norm_before_fc")) or "input_norm.weight" in names,
        norm_of_each=bool(extra.get("fc_norm")) or "fc_norm.0.weight" in names,
        residual_is_normed=third and bool(config.get("norm_before_residual")),
        feeds_normed=third and bool(extra.get("norm_output")),
        window=_window(given),
    )
    verifier = (config.get("speculators_config") or {}).get("verifier") or {}
    return Form(made, ids if third else None, tuple(verifier.get("architectures") or ()), layer)


def layer_sizes(
    given: Mapping[str, Any], typed: bool, names: frozenset[str], layer: str, origin: str
) -> DecoderConfig:
    """Returns the sizes of the layers.

    Args:
      given: the configuration.
      typed: whether its `model_type` is that of the head's layers. Otherwise it is Llama's, which
        it may call by the target's type.
      names: names of the tensors.
      layer: the checkpoint's name for the first layer.
      origin: name of the configuration in messages.
    """
    kinds = {"llama", "qwen3"}
    own = {key: given[key] for key in given.keys() & _LAYER_KEYS}
    own["model_type"] = given.get("model_type", "llama") if typed else "llama"
    # A rotary base of the target's is none of the head's: without one, it is Llama's 10,000.
    completed = complete_config(own, kinds, origin)
    check_numbers(completed, origin)
    check_together(completed, origin)
    config = llama_config(completed)
    return dataclasses.replace(
        config,
        qk_norm="head" if f"{layer}.self_attn.q_norm.weight" in names else None,
        qkv_bias=f"{layer}.self_attn.q_proj.bias" in names,
        out_bias=f"{layer}.self_attn.o_proj.bias" in names,
        mlp_bias=f"{layer}.mlp.up_proj.bias" in names,
    )


def _layer_ids(config: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Returns the layers whose inputs a head reads; None if the configuration leaves them out.

    SpecForge and Model Optimizer nest the numbers, and mean outputs. speculators means inputs.
    """
    nested = (config.get("eagle_config") or {}).get(_IDS)
    given = config.get(_IDS) if nested is None else nested
    if not given:
        return None
    if not all(isinstance(number, int) and not isinstance(number, bool) for number in given):
        raise ValueError(f"{_IDS} is {given}, not a list of whole numbers")
    return tuple(number + (nested is not None) for number in given)


def _window(given: Mapping[str, Any]) -> int | None:
    """Returns the sliding window of a head whose layers say that they have one."""
    kinds = set(given.get("layer_types") or ())
    if "sliding_attention" not in kinds:
        return None
    window = given.get("sliding_window")
    if len(kinds) > 1 or not isinstance(window, int) or window < 1:
        raise UserError(
            f"the head has a sliding window of {window} in some layers, which is not supported; "
            "use another head"
        )
    return window


def read_size(config: Mapping[str, Any], key: str, usual: int) -> int:
    """Returns a size that a configuration may leave out.

    Raises:
      ValueError: it is no size.
    """
    value = config.get(key)
    if value is None:
        return usual
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 26:
        raise ValueError(f"{key} is {value}, not a size")
    return value
