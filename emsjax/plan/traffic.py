"""Counts the launches and the bytes of memory traffic of a compiled program, from its text."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from emsjax.plan.loops import Computations

_INSTRUCTION = re.compile(
    r"^\s+(?P<root>ROOT )?%?(?P<name>[\w.-]+) = (?P<type>\(.*?\)|\S+) (?P<operation>[a-z][\w-]*)"
    r"\((?P<operands>[^)]*)\)"
)
_CALLED = re.compile(r" calls=%?([\w.-]+)")
_ARRAY = re.compile(r"(\w+)\[([0-9,]*)\](\{[^}]*\})?")
_OPERAND = re.compile(r"%([\w.-]+)")
# The layout of an array that a TPU keeps in one of its on-chip memories.
_ON_CHIP = re.compile(r"S\([1-9]\)")
_BITS = re.compile(r"\d+")
# What takes no time: a name for something that is there already, or the end of what was started.
_FREE = re.compile(
    r"parameter|constant|tuple|get-tuple-element|bitcast|after-all|while|\S+-done|\S+-update"
)
_SLICES = ("dynamic-slice", "slice", "gather")
# Operations whose result is the operand under another name.
_OTHER_NAMES = ("bitcast", "reshape")


class Instruction(NamedTuple):
    """One line of a computation.

    Attributes:
      name: of its result.
      type: of its result, as the compiler writes it.
      operation: such as "fusion".
      operands: names.
      called: the computation that it calls, or None.
      is_root: whether its result is that of the computation.
    """

    name: str
    type: str
    operation: str
    operands: tuple[str, ...]
    called: str | None
    is_root: bool


def instructions(lines: list[str]) -> Iterator[Instruction]:
    """Yields the instructions of a computation."""
    for line in lines:
        if found := _INSTRUCTION.match(line):
            called = _CALLED.search(line)
            # A parameter has its number in the place of operands.
            operands = _OPERAND.findall(found["operands"]) or [found["operands"]]
            yield Instruction(
                found["name"],
                found["type"],
                found["operation"],
                tuple(operands),
                called and called[1],
                found["root"] is not None,
            )


def launches(lines: list[str]) -> int:
    """Returns how many kernels one run of a computation launches on a GPU, inner loops left out."""
    return sum(not _FREE.fullmatch(each.operation) for each in instructions(lines))


class Traffic:
    """Counts the bytes that operations read from and write to memory.

    An operation that reads a slice of an array reads only that slice, and a kernel reads only its
    layer's part of what is stacked. Arrays in on-chip memory, the K/V cache, of which the text
    decides how much is read, and inner loops, which run an unknown number of times, are left out.
    """

    def __init__(self, program: Computations, num_layers: int, cache: tuple[int, ...]):
        """Prepares to count.

        Args:
          program: the lines of each computation, see `cycles.computations`.
          num_layers: L.
          cache: shape of the K/V cache.
        """
        self._program, self._num_layers, self._cache = program, num_layers, cache

    def of(self, name: str) -> int:
        """Returns the bytes that one run of a computation moves."""
        known = {each.name: each for each in instructions(self._program[name])}
        return sum(self._moved(each, known) for each in known.values())

    def _moved(self, each: Instruction, known: dict[str, Instruction]) -> int:
        if _FREE.fullmatch(each.operation):
            return 0
        types = [known[operand].type if operand in known else "" for operand in each.operands]
        if each.operation == "custom-call":
            return sum(map(self._layer_share, types)) + self._written(each)
        read = sum(self._read(each, n, self._size(kind)) for n, kind in enumerate(types))
        return read + self._written(each)

    def _layer_share(self, text: str) -> int:
        """Returns the bytes of an array, or of one layer's part if the layers are stacked."""
        stacked = re.search(r"\[(\d+)(?:,\d+){2,}\]", text)
        layers = int(stacked[1]) if stacked else 1
        return self._size(text) // (layers if layers == self._num_layers else 1)

    def _read(self, each: Instruction, number: int, size: int) -> int:
        """Returns the bytes of operand `number` that an instruction reads, at most `size`."""
        if each.operation in _SLICES and number == 0:
            return min(size, self._size(each.type, anywhere=True))
        if each.operation == "dynamic-update-slice" and number == 0:
            return 0  # It stays where it is.
        if each.called is None or size == 0:
            return size
        inner = list(instructions(self._program[each.called]))
        same = {
            x.name for x in inner if x.operation == "parameter" and x.operands == (str(number),)
        }
        for other in inner:
            if other.operation in _OTHER_NAMES and same & set(other.operands):
                same.add(other.name)
        if any(x.is_root and x.name in same for x in inner):
            return size  # Whoever called this reads it.
        uses = ((x, n) for x in inner for n, operand in enumerate(x.operands) if operand in same)
        parts = [self._read(x, n, size) for x, n in uses if x.operation not in _OTHER_NAMES]
        return min(size, sum(parts))

    def _written(self, each: Instruction) -> int:
        """Returns the bytes that an instruction writes."""
        if each.operation.endswith("-start"):
            return self._size(_ARRAY.search(each.type)[0])  # type: ignore[index]
        return self._size(each.type)

    def _size(self, text: str, *, anywhere: bool = False) -> int:
        """Returns the bytes of the arrays of a type that are in memory, or anywhere at all."""
        found = 0
        for kind, sizes, layout in _ARRAY.findall(text):
            shape = [int(size) for size in sizes.split(",") if size]
            if not self._is_cache(shape) and (anywhere or not _ON_CHIP.search(layout)):
                found += math.prod(shape) * _bits(kind) // 8
        return found

    def _is_cache(self, shape: list[int]) -> bool:
        """Whether an array is the cache, whose axes a kernel may have merged."""
        layers, slots, capacity = self._cache[:3]
        views = ([layers, slots], [layers, slots * capacity])
        return math.prod(shape) == math.prod(self._cache) and shape[:2] in views


def _bits(kind: str) -> int:
    """Returns the bits of a number, such as 16 of "bf16"."""
    found = _BITS.search(kind)
    return int(found[0]) if found else 8
