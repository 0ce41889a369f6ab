"""Describes a model family to the loader: its configuration and where its weights come from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

Transform = Callable[[Sequence[np.ndarray]], np.ndarray]


def _concat_rows(tensors: Sequence[np.ndarray]) -> np.ndarray:
    """Joins tensors along their output axis; a single tensor is returned unchanged."""
    return tensors[0] if len(tensors) == 1 else np.concatenate(tensors, axis=0)


def dotted(path: Sequence[Any]) -> str:
    """Returns a parameter's path in the form that weight maps use, "blocks.mlp.up.kernel"."""
    return ".".join(map(str, path))


@dataclass(frozen=True)
class Rule:
    """How one parameter is made from checkpoint tensors.

    Attributes:
      sources: names of the checkpoint tensors. `{}` stands for the layer number and makes the
        parameter a stack of layers, [L, ...]. A second `{}` stands for the number of an expert and
        makes it a stack of all their experts, [L, E, ...].
      transform: turns the tensors (of one layer or expert, if stacked) into the parameter's value.
        By default it joins their rows.
      first_layer: number of the first layer in the stack.
    """

    sources: tuple[str, ...]
    transform: Transform = _concat_rows
    first_layer: int = 0

    @property
    def stacked_axes(self) -> int:
        """The number of leading axes along which the parameter holds layers or experts."""
        return self.sources[0].count("{}")

    def names(self, place: Sequence[int]) -> list[str]:
        """Returns the tensors of one place in the stack; an unstacked parameter has one, ()."""
        numbers = [number + self.first_layer * (not axis) for axis, number in enumerate(place)]
        return [source.format(*numbers) for source in self.sources]

    @property
    def joins(self) -> bool:
        """Whether the transform just joins rows, and so suits whatever belongs to rows."""
        return self.transform is _concat_rows


def rule(*sources: str, transform: Transform = _concat_rows) -> Rule:
    """Returns a `Rule`, in a form that keeps weight maps short."""
    return Rule(sources, transform)


def affine(
    path: str,
    *names: str,
    bias: bool = True,
    weight: str = "kernel",
    transform: Transform = _concat_rows,
) -> dict[str, Rule]:
    """Returns the rules for a weight and its bias.

    Args:
      path: path of the module in the model, e.g. "blocks.attention.qkv".
      *names: the checkpoint's modules; several are joined along the output axis.
      bias: whether the module has a bias.
      weight: the module's name for its weight, "kernel" or "scale".
      transform: transform of the weight; biases are always just joined.
    """
    rules = {f"{path}.{weight}": rule(*(f"{n}.weight" for n in names), transform=transform)}
    if bias:
        rules[f"{path}.bias"] = rule(*(f"{n}.bias" for n in names))
    return rules


@dataclass(frozen=True)
class WeightMap:
    """Maps a family's parameters to checkpoint tensors.

    Attributes:
      rules: `Rule` for each parameter path, e.g. "blocks.attention.qkv.kernel".
      ignore: regular expressions (full match) for checkpoint tensors that the model does not use.
      prefixes: optional prefixes of tensor names, which some of the family's checkpoints have.
      shared: names of the token embedding and of the output head. A checkpoint of a tied model
        may hold either of them or both; if both differ, the model is not tied, whatever its
        configuration says.
      instead: rules for parameters that some of the family's checkpoints keep in another form. Each
        replaces the one in `rules` if the checkpoint has its first tensor.
    """

    rules: Mapping[str, Rule]
    ignore: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    shared: tuple[str, str] | None = None
    instead: Mapping[str, Rule] = field(default_factory=dict)


def of_text_part(layout: WeightMap) -> WeightMap:
    """Returns a weight map that also reads the text part of a multimodal checkpoint."""
    return replace(
        layout,
        ignore=(*layout.ignore, r"(vision_tower|multi_modal_projector)\..*"),
        prefixes=("model.", "model.language_model.", "language_model.model.", "language_model."),
    )


@dataclass(frozen=True)
class Family:
    """Everything needed to build and load the models of one family.

    Attributes:
      name: the Hugging Face `model_type`.
      config: converts a Hugging Face configuration (a dict with every default filled in) to a
        `DecoderConfig`; raises `UserError` if the configuration uses an unsupported feature.
      weights: returns the weight map for a `DecoderConfig`.
      harmless: keys of the configuration that `config` need not read, because none of their values
        changes the text. The loader refuses any other key that `config` did not read, unless this
        is None.
      implied: keys of published checkpoints that `transformers` does not read because they describe
        what the family always does, with the values that say so. Other values are refused.
    """

    name: str
    config: Callable[[Mapping[str, Any]], Any]
    weights: Callable[[Any], WeightMap]
    harmless: frozenset[str] | None = None
    implied: Mapping[str, Any] = field(default_factory=dict)
