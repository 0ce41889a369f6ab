"""Matches checkpoint tensors to parameters and reports everything that does not fit."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from emsjax.errors import UserError, brief
from emsjax.loading.sources.folded import folded
from emsjax.loading.sources.source import TensorSource
from emsjax.models.family import Rule, WeightMap

_ROOM = 240  # characters of names in a message


@dataclass(frozen=True)
class Parameter:
    """One parameter to fill.

    Attributes:
      shape: the parameter's shape.
      rule: how its value is made from checkpoint tensors.
      pieces: names of the checkpoint tensors, one list for each layer or each expert of it; a
        single list if the parameter is not stacked.
    """

    shape: tuple[int, ...]
    rule: Rule
    pieces: Sequence[Sequence[str]]

    @property
    def tensors(self) -> frozenset[str]:
        """Names of all its checkpoint tensors."""
        return frozenset(name for names in self.pieces for name in names)

    @property
    def piece(self) -> tuple[int, ...]:
        """Shape of the value that the rule's transform must return for one layer or expert."""
        return self.shape[self.rule.stacked_axes :]


@dataclass
class Problems:
    """Everything wrong with a checkpoint, collected so that one error can report it.

    Attributes:
      missing: tensors that the model needs and the checkpoint lacks.
      surplus: tensors that the model has no use for.
      truncated: tensors whose data is cut off.
      misshapen: descriptions of tensors with the wrong shape.
    """

    missing: list[str] = field(default_factory=list)
    surplus: list[str] = field(default_factory=list)
    truncated: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)

    def raise_if_any(self, source: TensorSource) -> None:
        """Raises one `UserError` that names the affected tensors, the first of many, if any."""
        kinds = {
            "missing": folded(self.missing),
            "not part of this model": folded(self.surplus),
            "truncated": folded(self.truncated),
            "misshapen": self.misshapen,
        }
        found = {kind: names for kind, names in kinds.items() if names}
        if found:
            room = _ROOM // len(found)
            listed = "; ".join(f"{kind} {_listed(names, room)}" for kind, names in found.items())
            raise UserError(
                f"the weights in {source.name} do not fit its configuration: {listed}; check that "
                "configuration and weights belong together, or download them again."
            )


def plan_parameters(
    shapes: Mapping[str, tuple[int, ...]], weight_map: WeightMap, source: TensorSource
) -> Mapping[str, Parameter]:
    """Resolves every parameter to tensors of `source`, without reading any data.

    Args:
      shapes: shape of each of the model's parameters, by dotted path.
      weight_map: the tensors that each parameter comes from.
      source: the checkpoint.

    Returns:
      A `Parameter` for each path of `shapes`.

    Raises:
      UserError: tensors are missing, surplus, truncated or misshapen; the message names the first
        of each kind and the number of others.
      ValueError: the weight map and the model have different parameters.
    """
    if shapes.keys() != weight_map.rules.keys():
        odd = sorted(shapes.keys() ^ weight_map.rules.keys())
        raise ValueError(f"weight map and model disagree about parameters: {', '.join(odd)}")
    there = source.shapes()
    names = _by_bare_name(there, weight_map)
    problems = Problems()
    parameters = {}
    for path, shape in shapes.items():
        rule = rule_for(path, weight_map, names)
        pieces = [
            [
                _find(name, names, weight_map.prefixes, problems.missing)
                for name in rule.names(place)
            ]
            for place in np.ndindex(shape[: rule.stacked_axes])
        ]
        parameters[path] = Parameter(shape, rule, pieces)
        problems.misshapen += _misshapen(path, parameters[path], there)
    used = {name for parameter in parameters.values() for name in parameter.tensors}
    problems.surplus += sorted(_surplus(there.keys() - used - source.spare, weight_map))
    problems.truncated += sorted(source.truncated)
    problems.raise_if_any(source)
    return parameters


def _by_bare_name(there: Collection[str], weight_map: WeightMap) -> dict[str, str]:
    """Returns the checkpoint's tensor names by their names without prefix.

    If only one of the `shared` tensors is there, the other's name leads to it too.
    """
    names = {bare(name, weight_map.prefixes): name for name in there}
    if weight_map.shared and not _untied(weight_map):
        embedding, head = weight_map.shared
        if head in names:
            names.setdefault(embedding, names[head])
    return names


def _untied(weight_map: WeightMap) -> bool:
    """Returns whether a parameter is read from the output head's own tensor."""
    assert weight_map.shared is not None
    head = weight_map.shared[1]
    return any(head in rule.sources for rule in weight_map.rules.values())


def stored_head(source: TensorSource, weight_map: WeightMap) -> tuple[str, str] | None:
    """Returns the checkpoint's names of embedding and output head if it holds both in full."""
    if weight_map.shared is None:
        return None
    names = {bare(name, weight_map.prefixes): name for name in source.shapes()}
    embedding, head = (names.get(name) for name in weight_map.shared)
    if embedding is None or head is None or {embedding, head} & source.truncated:
        return None
    return embedding, head


def _find(
    wanted: str, names: Mapping[str, str], prefixes: Sequence[str], missing: list[str]
) -> str:
    """Returns the checkpoint's name for `wanted`; adds `wanted` to `missing` if it has none."""
    found = names.get(bare(wanted, prefixes))
    if found is None:
        missing.append(wanted)
    return found or ""


def rule_for(path: str, weight_map: WeightMap, names: Collection[str]) -> Rule:
    """Returns the rule of a parameter that suits a checkpoint with these names without prefix."""
    other = weight_map.instead.get(path)
    if other is not None:
        first, *_ = other.names((0,) * other.stacked_axes)
        if bare(first, weight_map.prefixes) in names:
            return other
    return weight_map.rules[path]


def bare(name: str, prefixes: Sequence[str]) -> str:
    """Strips the longest of the optional prefixes that `name` starts with."""
    for prefix in sorted(prefixes, key=len, reverse=True):
        if name.startswith(prefix):
            return name[len(prefix) :]
    return name


def _surplus(unused: Collection[str], weight_map: WeightMap) -> Iterator[str]:
    """Yields the unused tensors that the weight map does not ignore."""
    # A tied model's head is left over if it equals the embedding, which `as_stored` has checked.
    ignore = [re.compile(pattern) for pattern in weight_map.ignore]
    ignore += [re.compile(re.escape(name)) for name in weight_map.shared or ()]
    for name in unused:
        forms = (name, bare(name, weight_map.prefixes))
        if not any(pattern.fullmatch(form) for pattern in ignore for form in forms):
            yield name


def _misshapen(
    path: str, parameter: Parameter, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[str]:
    """Yields descriptions of tensors from which the parameter's shape does not result.

    The transform runs once per distinct set of shapes, on broadcast zeros that take no memory.
    """
    groups: dict[tuple[tuple[int, ...], ...], list[str]] = {}
    for names in parameter.pieces:
        if all(names):  # the others are already reported as missing
            groups.setdefault(tuple(shapes[name] for name in names), []).extend(names)
    for key, names in groups.items():
        made = _made(parameter, key)
        if made != parameter.piece:
            said = "has " + " and ".join(str(list(shape)) for shape in key)
            if made and len(key) == 1 and made != key[0]:
                # The tensor is turned, and may have the shape that its parameter needs.
                said = f"gives {list(made)}"
            yield f"{', '.join(folded(names))} {said} where {path} needs {list(parameter.piece)}"


def _made(parameter: Parameter, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...] | None:
    """Returns the shape that the transform makes of tensors of `shapes`; None if it makes none."""
    try:
        zeros = [np.broadcast_to(np.zeros((), np.float32), shape) for shape in shapes]
        return np.shape(parameter.rule.transform(zeros))
    except (ValueError, IndexError):
        return None


def _listed(names: Sequence[str], room: int) -> str:
    """Lists names in about `room` characters, at least the first, and counts the others."""
    shown, length = [brief(names[0], 120)], len(names[0])
    for name in names[1:]:
        length += len(name) + 2
        if length > room:
            break
        shown.append(name)
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
