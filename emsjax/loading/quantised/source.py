"""Shows the tensors of a quantised checkpoint as if it were not quantised."""

import functools
from collections.abc import Iterator, Mapping

import numpy as np

from emsjax.errors import UserError, foreign
from emsjax.loading.quantised.format import Format, Layout, Shape, filled_in
from emsjax.loading.sources.dtypes import own_dtype
from emsjax.loading.sources.folded import folded
from emsjax.loading.sources.int4 import Int4
from emsjax.loading.sources.int8 import Int8
from emsjax.loading.sources.safetensors import SafetensorsSource
from emsjax.models.groups import Groups

_MOST = 4  # problems to list
# What quantised caches and attention have, and emsjax has not. It belongs to no weights.
_OF_ATTENTION = frozenset(
    {
        *("k_scale", "v_scale", "q_scale", "kv_scale"),
        *("k_zero_point", "v_zero_point", "q_zero_point"),
    }
)
Problem = tuple[str, str]  # a tensor, and what is wrong with it


class QuantisedSource:
    """A `TensorSource` over the tensors of another one, with `X.weight` for each quantised X."""

    def __init__(self, source: SafetensorsSource, its_format: Format):
        """Checks the names, shapes and scales of all quantised modules.

        Raises:
          UserError: a part of a module is missing, misshapen or not finite, or no module is
            quantised. The message names the tensors.
        """
        self.name, self.truncated = source.name, source.truncated
        self._source, self._format = source, its_format
        shapes, dtypes = source.shapes(), source.dtypes()
        ending = its_format.tensor("", its_format.marker)
        modules = [
            name.removesuffix(ending)
            for name in shapes
            if name.endswith(ending) and dtypes[name] in its_format.dtypes
        ]
        self._parts = {
            module + its_format.weight: _parts(module, shapes, its_format) for module in modules
        }
        self._shapes = {}
        problems: list[Problem] = []
        for weight, parts in self._parts.items():
            found = {part: shapes[tensor] for part, tensor in parts.items()}
            layout, wrong = self._checked(weight, found)
            self._shapes[weight] = layout.shape
            problems += [*wrong, *_mistyped(parts, dtypes, its_format)]
            problems += self._misplaced(parts, layout.groups)
        hidden = {name for name in shapes if name.rpartition(".")[2] in _OF_ATTENTION}
        hidden |= {its_format.tensor(m, part) for m in modules for part in its_format.ignored}
        hidden |= {name for parts in self._parts.values() for name in parts.values()}
        wide = {name: shape for name, shape in shapes.items() if name not in hidden}
        problems += self._infinite()
        problems += self._unlike(modules, shapes)
        self._raise(problems if modules else [("no", f"{its_format.marker} of a module")])
        self._shapes |= wide
        self.spare = frozenset(self._empty_biases(modules, shapes))
        self.dtype = own_dtype(dtypes[name] for name in wide)
        self.int8 = frozenset(self._parts if its_format.int8 is not None else ())
        self.int4: Mapping[str, Groups] = dict(self._groups(shapes, dtypes))

    def shapes(self) -> Mapping[str, Shape]:
        """Returns the shapes of all tensors, those of quantised weights as [out, in]."""
        return self._shapes

    def read(self, name: str) -> np.ndarray:
        """Returns one tensor; a quantised weight in float32."""
        if name not in self._parts:
            return self._source.read(name)
        problem = f"{name} in {self.name} cannot be dequantised"
        with foreign(problem, "download the model again."), np.errstate(over="raise"):
            return self._format.dequantised(self._read_parts(name))

    def read_int8(self, name: str) -> Int8:
        """Returns one of the tensors of `int8` as the checkpoint holds it."""
        assert self._format.int8 is not None
        return self._format.int8(self._read_parts(name))

    def read_int4(self, name: str) -> Int4:
        """Returns one of the tensors of `int4` in the checkpoint's numbers."""
        assert self._format.int4 is not None
        return self._format.int4.numbers(self._read_parts(name), self.int4[name].offsets)

    def _groups(
        self, shapes: Mapping[str, Shape], dtypes: Mapping[str, str]
    ) -> Iterator[tuple[str, Groups]]:
        """Yields the weights that may be kept in 4 bits, and their groups."""
        if (grid := self._format.int4) is None:
            return
        for weight, parts in self._parts.items():
            if not self.truncated.isdisjoint(parts.values()):
                continue
            found = grid.groups(
                {part: shapes[tensor] for part, tensor in parts.items()},
                {part: dtypes[tensor] for part, tensor in parts.items()},
                lambda part, parts=parts: self._source.read(parts[part]),  # type: ignore[misc]
            )
            if found is not None:
                yield weight, found

    def _read_parts(self, name: str) -> dict[str, np.ndarray]:
        return {part: self._source.read(tensor) for part, tensor in self._parts[name].items()}

    def _checked(self, weight: str, shapes: Mapping[str, Shape]) -> tuple[Layout, list[Problem]]:
        """Returns the shapes of a module, and what is wrong with its parts.

        Args:
          weight: the name of the weights.
          shapes: the shapes of the parts that are there.
        """
        its_format, header = self._format, self._format.header
        tensor = functools.partial(its_format.tensor, weight.removesuffix(its_format.weight))
        missing = [(tensor(part), "is missing") for part in its_format.needed if part not in shapes]
        marker = shapes[its_format.marker]
        unknown = Layout(marker, {})
        try:
            if header is None:
                found = its_format.layout(shapes)
            elif header not in shapes:
                return unknown, missing
            else:
                found = its_format.layout(shapes, self._source.read(self._parts[weight][header]))
        except (ValueError, IndexError, ArithmeticError):
            wrong = tensor(its_format.marker), f"has {list(marker)}"
            return unknown, [*missing, (tensor(header), "is damaged") if header else wrong]
        misshapen = [
            (tensor(part), f"has {list(shapes[part])}, not {list(next(iter(allowed)))}")
            for part, allowed in found.parts.items()
            if part in shapes and shapes[part] not in allowed
        ]
        return found, missing + misshapen

    def _empty_biases(self, modules: list[str], shapes: Mapping[str, Shape]) -> Iterator[str]:
        """Yields biases of zeros, which some libraries add to modules that have none."""
        for bias in (f"{module}.bias" for module in modules):
            # That one is truncated is said by itself.
            if bias in shapes and (bias in self.truncated or not self._source.read(bias).any()):
                yield bias

    def _misplaced(self, parts: Mapping[str, str], groups: int) -> Iterator[Problem]:
        """Yields the part that names the group of each input if it names some that do not exist."""
        tensor = parts.get(self._format.group_of or "")
        if tensor is None or not groups or tensor in self.truncated:
            return
        named = filled_in(self._source.read(tensor))
        if named is not None and not ((named >= 0) & (named < groups)).all():
            yield tensor, f"names groups besides 0 to {groups - 1}"

    def _unlike(self, modules: list[str], shapes: Mapping[str, Shape]) -> Iterator[Problem]:
        """Yields the parts that must hold a certain number and hold another."""
        for part, number in self._format.fixed.items():
            for tensor in (self._format.tensor(module, part) for module in modules):
                if tensor in shapes and tensor not in self.truncated:
                    found = self._source.read(tensor)
                    if (found != number).any():
                        yield tensor, f"is {found.max()}, not {number}"

    def _infinite(self) -> Iterator[Problem]:
        """Yields what is wrong with scales that are not finite numbers."""
        undefined = self._format.undefined
        for parts in self._parts.values():
            for part, tensor in parts.items():
                of_scales = part in self._format.scales or part in undefined
                if not of_scales or tensor in self.truncated:
                    continue
                found = self._source.read(tensor)
                if part in undefined:
                    sound = found != undefined[part]
                else:
                    sound = np.isfinite(found.astype(np.float32))
                if not sound.all():
                    yield tensor, "holds a number that is not finite"

    def _raise(self, problems: list[Problem]) -> None:
        if problems:
            said = dict.fromkeys(what for _, what in problems)
            listed = [
                f"{tensor} {what}"
                for what in said
                for tensor in folded([tensor for tensor, each in problems if each == what])
            ]
            more = f" and {len(listed) - _MOST} more" if len(listed) > _MOST else ""
            raise UserError(
                f"the weights in {self.name} are not what its quantization_config describes "
                f"({self._format.name}): {'; '.join(listed[:_MOST])}{more}; download the model "
                "again, or use another copy."
            )


def _parts(module: str, shapes: Mapping[str, Shape], its_format: Format) -> dict[str, str]:
    """Returns the parts of a module that are there, and the names of their tensors."""
    named = {part: its_format.tensor(module, part) for part in its_format.parts}
    for part, alias in its_format.aliases.items():
        if named[part] not in shapes:
            named[part] = its_format.tensor(module, alias)
    return {part: name for part, name in named.items() if name in shapes}


def _mistyped(
    parts: Mapping[str, str], dtypes: Mapping[str, str], its_format: Format
) -> Iterator[Problem]:
    """Yields the parts of a module that hold numbers of another type."""
    for part, tensor in parts.items():
        dtype, is_float = dtypes[tensor], dtypes[tensor].startswith(("F", "BF"))
        if part in its_format.scales:
            fits, wanted = is_float, "floats"
        elif part in (its_format.group_of, its_format.header):
            fits, wanted = not is_float, "whole numbers"
        else:  # packed like the numbers themselves
            wanted = dtypes[parts[its_format.marker]]
            fits = dtype == wanted
        if part != its_format.marker and not fits:
            yield tensor, f"holds {dtype}, not {wanted}"
