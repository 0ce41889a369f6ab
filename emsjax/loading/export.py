"""Exports a model as a Hugging Face directory, so that `transformers` uses the same weights."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from emsjax.errors import UserError
from emsjax.loading.build import abstract_model
from emsjax.loading.hf.defaults import type_of_transformers
from emsjax.loading.load import LoadedModel
from emsjax.loading.parameters import bare, rule_for
from emsjax.models.family import dotted
from emsjax.pallas_kernels.quantised import (
    OFFSETS,
    ORDER,
    SCALE,
    SCALES,
    Grouped,
    floats,
)


def export_hugging_face(loaded: LoadedModel, directory: Path) -> None:
    """Writes a model as float32 safetensors with its `config.json`.

    This inverts the family's weight map, which works only if the map just joins tensors, as for
    Llama, Mistral, Qwen and OPT.

    Args:
      loaded: the model.
      directory: existing directory to write into.

    Raises:
      UserError: the weight map cannot be inverted, or its tensors are not those that
        `transformers` expects.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    known = {"model_type": type_of_transformers(loaded.hf_config["model_type"])}
    config = AutoConfig.for_model(**loaded.hf_config | known)
    with torch.device("meta"):
        shapes = {
            name: tuple(tensor.shape)
            for name, tensor in AutoModelForCausalLM.from_config(config).state_dict().items()
        }
    weight_map = abstract_model(loaded.hf_config)[2]
    tensors = {
        name: torch.from_numpy(value.copy())
        for name, value in _tensors(loaded.model, weight_map, shapes)
    }
    _check_complete(set(tensors), set(shapes), config)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(directory)


def _tensors(
    model: Any, weight_map: Any, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, Any]]:
    """Yields the name and value (a numpy array) of each checkpoint tensor."""
    leaves = {dotted(path): leaf for path, leaf in nnx.to_flat_state(nnx.state(model))}
    names = {bare(name, weight_map.prefixes) for name in shapes}
    for parameter in weight_map.rules:
        its_rule = rule_for(parameter, weight_map, names)
        if not its_rule.joins:
            raise UserError(
                f"parameter {parameter} cannot be exported, because its weight map does more than "
                "join tensors; use a model of another family"
            )
        value = _floats(parameter, leaves)
        for place in np.ndindex(value.shape[: its_rule.stacked_axes]):
            full = [_full_name(name, weight_map.prefixes, shapes) for name in its_rule.names(place)]
            ends = np.cumsum([shapes[name][0] for name in full])[:-1]
            yield from zip(full, np.split(value[place], ends), strict=True)


def _floats(parameter: str, leaves: Mapping[str, Any]) -> np.ndarray:
    """Returns a parameter in float32."""
    held = [leaves.get(parameter + end) for end in ("", SCALE, SCALES, OFFSETS, ORDER)]
    values, scale, scales, *others = (None if x is None else x[...] for x in held)
    if values is not None and scales is not None:
        return np.array(floats(Grouped(values, scales, *others)))
    value = np.asarray(values, np.float32)
    return value if scale is None else value * np.asarray(scale)[..., None]


def _full_name(short: str, prefixes: tuple[str, ...], shapes: Mapping[str, tuple[int, ...]]) -> str:
    for name in (short, *(prefix + short for prefix in prefixes)):
        if name in shapes:
            return name
    raise UserError(f"transformers has no tensor {short}; use another version of transformers")


def _check_complete(written: set[str], wanted: set[str], config: Any) -> None:
    """Checks that every tensor is written except an output head tied to the embedding."""
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    if missing := wanted - written - tied:
        raise UserError(
            f"transformers expects tensors that this model does not have: {sorted(missing)}; use "
            "another version of transformers"
        )
