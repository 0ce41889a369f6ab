"""What the loader needs to know about a model family, and how parameters map to checkpoints."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Transform = Callable[[Sequence[np.ndarray]], np.ndarray]


def _concat_rows(tensors: Sequence[np.ndarray]) -> np.ndarray:
    """Join tensors along their output axis; one tensor is returned as it is."""
    return tensors[0] if len(tensors) == 1 else np.concatenate(tensors, axis=0)


@dataclass(frozen=True)
class Rule:
    """Where one parameter comes from.

    Attributes:
      sources: names of checkpoint tensors; `{}` stands for the layer number and makes the
        parameter a stack of all layers, [L, ...].
      transform: turns one layer's tensors into the parameter's value; joins rows by default.
    """

    sources: tuple[str, ...]
    transform: Transform = _concat_rows

    @property
    def stacked(self) -> bool:
        """Whether the parameter holds all layers along a leading axis."""
        return "{}" in self.sources[0]


def rule(*sources: str, transform: Transform = _concat_rows) -> Rule:
    """Short form of `Rule` for weight maps."""
    return Rule(sources, transform)


def affine(
    path: str,
    *names: str,
    bias: bool = True,
    weight: str = "kernel",
    transform: Transform = _concat_rows,
) -> dict[str, Rule]:
    """Rules of a weight and its bias; several names are joined along the output axis.

    Args:
      path: the parameter's module, "blocks.attention.qkv".
      *names: the checkpoint's modules.
      bias: whether there is a bias.
      weight: what the module calls its weight, "kernel" or "scale".
      transform: for the weight; a bias is only joined.
    """
    rules = {f"{path}.{weight}": rule(*(f"{n}.weight" for n in names), transform=transform)}
    if bias:
        rules[f"{path}.bias"] = rule(*(f"{n}.bias" for n in names))
    return rules


@dataclass(frozen=True)
class WeightMap:
    """A family's checkpoint names.

    Attributes:
      rules: parameter path ("blocks.attention.qkv.kernel") to `Rule`.
      ignore: regular expressions (full match) of tensors that carry no weight we use.
      prefixes: leading parts that some checkpoints of the family have and others lack.
    """

    rules: Mapping[str, Rule]
    ignore: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """A model family: everything needed to build and load it.

    Attributes:
      name: the Hugging Face `model_type`.
      config: Hugging Face configuration (as a dict with every default filled in) to ours;
        raises `UserError` where it asks for something unsupported.
      weights: our configuration to the checkpoint's names.
    """

    name: str
    config: Callable[[Mapping[str, Any]], Any]
    weights: Callable[[Any], WeightMap]
