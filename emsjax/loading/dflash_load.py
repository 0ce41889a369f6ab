"""Loads DFlash heads in the format of their own repository (z-lab) and of SpecForge."""

from collections.abc import Iterator, Mapping
from typing import Any

from flax import nnx

from emsjax.drafters.dflash import DFlash, Parts
from emsjax.engine.devices import bytes_of_device
from emsjax.errors import UserError, foreign
from emsjax.loading.eagle_form import layer_sizes, read_size
from emsjax.loading.eagle_tensors import layer_rules
from emsjax.loading.head_kind import PREFIXES
from emsjax.loading.head_parts import Head, read_head, wrong_layers
from emsjax.loading.load import LoadedModel
from emsjax.models.dflash_head import DFlashConfig, DFlashHead
from emsjax.models.family import WeightMap, rule

_BLOCK = 16  # where the configuration leaves it out
_LARGEST_BLOCK = 1024  # far above any head's, and all of its rows run in every draft
_SLIDING = "sliding_attention"


def load_dflash(head: Head, target: LoadedModel, draft_length: int, narrowest: int) -> DFlash:
    """Reads a head and returns the drafter; see `head_load.load_head`."""
    origin, model = str(head.directory / "config.json"), target.model
    with foreign(f"{origin} is damaged", "download the head again."):
        ids = _layers_read(head.config, model.num_layers)
        config = _read_form(head, len(ids), origin)
        block = read_size(_settings(head.config), "block_size", _BLOCK)
        mask_token = _settings(head.config).get("mask_token_id")
        if type(mask_token) is not int or not 2 <= block <= _LARGEST_BLOCK:
            raise ValueError(f"mask_token_id is {mask_token} and block_size {block}")
    wrong = list(_differences(config, ids, mask_token, target))
    graphdef, params = read_head(
        head,
        lambda: DFlashHead(config, rngs=nnx.Rngs(0), dtype=model.dtype),
        _weights(config),
        target,
        wrong,
    )
    return DFlash(
        name=head.label,
        weights=Parts(params, model.embedding_table, model.output_table),
        merge=lambda params: nnx.merge(graphdef, params),
        vocab_size=model.vocab_size,
        hidden_layers=ids,
        block=block,
        mask_token=mask_token,
        read_bytes=bytes_of_device((params, model.output_kernel)),
        observed_bytes=_observed_bytes(config, params),
        draft_length=draft_length,
        narrowest=narrowest,
        vocabulary=target.devices.vocabulary(model.vocab_size),
    )


def _observed_bytes(config: DFlashConfig, params: Any) -> int:
    """Returns the bytes of the weights that make K/V of what the target has read."""
    sizes, layers = config.layers, params["layers"]
    qkv = [layers[number]["attention"]["qkv"] for number in range(sizes.num_layers)]
    kv, queries = 2 * sizes.num_kv_heads, sizes.num_heads
    of_kv = bytes_of_device(qkv) * kv // (queries + kv)
    return bytes_of_device(params["fc"]) + of_kv


def _settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the configuration with what is nested in it."""
    nested = config.get("dflash_config") or {}
    return {**config, **{key: value for key, value in nested.items() if value is not None}}


def _layers_read(config: Mapping[str, Any], num_layers: int) -> tuple[int, ...]:
    """Returns the target's layers whose inputs the head reads; it numbers their outputs."""
    ids = _settings(config).get("target_layer_ids")
    if ids is None:  # the repository's own choice: evenly spaced
        count = read_size(config, "num_hidden_layers", 1)
        last = num_layers - 3
        ids = [round(1 + n * (last - 1) / (count - 1)) for n in range(count)] if count > 1 else []
        ids = ids or [num_layers // 2]
    if not ids or not all(type(number) is int for number in ids):
        raise ValueError(f"target_layer_ids is {ids}, not a list of whole numbers")
    return tuple(number + 1 for number in ids)


def _read_form(head: Head, fused: int, origin: str) -> DFlashConfig:
    config, settings = head.config, _settings(head.config)
    given = {"model_type": "qwen3", **config}
    layers = layer_sizes(given, True, frozenset(head.names), "layers.0", origin)
    kinds = list(config.get("layer_types") or [""] * layers.num_layers)
    if len(kinds) != layers.num_layers:
        raise ValueError(f"layer_types has {len(kinds)} entries for {layers.num_layers} layers")
    slides = _SLIDING in kinds and config.get("use_sliding_window", True)
    window = read_size(config, "sliding_window", 0) if slides else 0
    windows = tuple((window or None) if kind == _SLIDING else None for kind in kinds)
    causal = tuple(
        kind == _SLIDING if config.get("is_causal") is None else bool(config["is_causal"])
        for kind in kinds
    )
    if any(each and not one_way for each, one_way in zip(windows, causal, strict=True)):
        raise UserError(
            f"the DFlash head {head.directory} looks both ways within a sliding window, which is "
            "not supported; use another head"
        )
    cap = settings.get("final_logit_softcapping")
    return DFlashConfig(
        layers,
        fused,
        windows,
        causal,
        embedding_scale=float(settings.get("input_embedding_scale", 1.0)),
        logit_scale=float(settings.get("output_multiplier", 1.0)),
        soft_cap=float(cap) if cap else None,
    )


def _differences(
    config: DFlashConfig, ids: tuple[int, ...], mask_token: int, target: LoadedModel
) -> Iterator[str]:
    """Yields what does not fit the target."""
    model, width = target.model, config.layers.hidden_size
    if width != model.hidden_size:
        yield f"it reads hidden states of size {width}, not {model.hidden_size}"
    elif width != model.embedding_kernel.shape[1]:
        yield f"its embedding is {width} wide, not {model.embedding_kernel.shape[1]}"
    if config.layers.vocab_size != model.vocab_size:
        yield f"its vocabulary has {config.layers.vocab_size} tokens, not {model.vocab_size}"
    if not 0 <= mask_token < model.vocab_size:
        yield f"its mask token is {mask_token}, which does not exist"
    yield from wrong_layers(ids, model.num_layers)


def _weights(config: DFlashConfig) -> WeightMap:
    rules = {
        "fc.kernel": rule("fc.weight"),
        "read_norm.scale": rule("hidden_norm.weight"),
        "norm.scale": rule("norm.weight"),
    }
    for number in range(config.layers.num_layers):
        name = f"layers.{number}"
        rules |= layer_rules(config.layers, name, name)
        rules[f"{name}.attention_norm.scale"] = rule(f"{name}.input_layernorm.weight")
    return WeightMap(rules, (r".*\.rotary_emb\.inv_freq",), PREFIXES)
