"""The description of a format: which tensors hold a module's weights, and what they mean."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from emsjax.loading.sources.int4 import Int4
from emsjax.loading.sources.int8 import Int8
from emsjax.models.groups import Groups

Shape = tuple[int, ...]
# The tensors of one module, by their names after that of the module: "weight", "weight_scale".
Parts = Mapping[str, np.ndarray]


class Layout(NamedTuple):
    """The shapes of a module's tensors.

    Attributes:
      shape: of the weights that they hold, (out, in).
      parts: the shapes that each part may have; a part that is not named may have any.
      groups: the number of groups of inputs, if a part may hold the group of each; otherwise 0.
    """

    shape: Shape
    parts: Mapping[str, Collection[Shape]]
    groups: int = 0


class Numbers(NamedTuple):
    """What a module's tensors hold: a weight is `(value - zero) * scale` of its group.

    Attributes:
      values: whole numbers [out, in].
      scales: float32[out, G].
      zeros: whole numbers [out, G]; None for none.
      group_of: int[in], the group of each input; None if the groups lie one after another.
    """

    values: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray | None = None
    group_of: np.ndarray | None = None

    def dequantised(self, size: int | None) -> np.ndarray:
        """Returns the weights float32[out, in], for groups of a size; None for one group."""
        weights = self.values.astype(np.float32)
        num_in = weights.shape[1]
        if self.zeros is not None:
            zeros = self.zeros.astype(np.float32)
            weights -= per_column(zeros, num_in, size, self.group_of)
        weights *= per_column(self.scales, num_in, size, self.group_of)
        return weights

    def int4(self, middle: int, offsets: bool) -> Int4:
        """Returns the same weights with offsets for zeros, which is exact for scales of 16 bits.

        Columns are sorted by their groups.

        Args:
          middle: the value that becomes 0.
          offsets: whether there are offsets; if not, all zeros are the middle.
        """
        values = self.values.astype(np.int8) - np.int8(middle)
        if self.group_of is not None:
            values = values[:, _sorted(self.group_of)]
        if not offsets:
            return Int4(values, self.scales)
        zeros = np.float32(0) if self.zeros is None else self.zeros.astype(np.float32)
        return Int4(values, self.scales, (np.float32(middle) - zeros) * self.scales)


@dataclass(frozen=True)
class Grid:
    """How a format's weights of 4 bits are kept.

    Attributes:
      groups: takes the shapes of a module's parts, their types as safetensors names them, and a
        function that reads a part. It returns the groups of inputs, or None for weights that must
        be dequantised.
      numbers: takes a module's parts and whether its groups have offsets, and returns the numbers.
    """

    groups: Callable[
        [Mapping[str, Shape], Mapping[str, str], Callable[[str], np.ndarray]], Groups | None
    ]
    numbers: Callable[[Parts, bool], Int4]


def groups_of(
    size: int | None, offsets: bool, num_in: int, dtype: str, group_of: np.ndarray | None
) -> Groups | None:
    """Returns the groups of weights of 4 bits, or None if they must be dequantised.

    Args:
      size: inputs of a group; None for all.
      offsets: whether zeros are not all the middle.
      num_in: the number of inputs.
      dtype: the type of the scales, as safetensors names it.
      group_of: int[in], the group of each input; None if the groups lie one after another.
    """
    size = size or num_in
    # A product of a scale of 16 bits and a zero is exact, and so is a weight with this offset.
    exact = not offsets or dtype in ("F16", "BF16")
    if not exact or num_in % size:
        return None
    in_order = np.arange(num_in) // size
    if group_of is None or np.array_equal(group_of, in_order):
        return Groups(size, offsets)
    order = _sorted(group_of)
    # Groups of other sizes, or that do not exist, are left to what makes floats of them.
    whole = np.array_equal(group_of[order], in_order)
    return Groups(size, offsets, order.tobytes()) if whole else None


def _sorted(group_of: np.ndarray) -> np.ndarray:
    """Returns the input of each column, int32[in], if columns are sorted by their groups."""
    return np.argsort(group_of, kind="stable").astype(np.int32)


@dataclass(frozen=True)
class Format:
    """How the checkpoints of one format hold the weights of a module.

    Attributes:
      name: for messages.
      marker: the part by which a quantised module is known.
      dtypes: types of the marker, as safetensors names them. A tensor with the marker's name and
        another type is not quantised.
      needed: further parts that every quantised module has.
      optional: parts that a module may have.
      ignored: parts that belong to quantised activations or caches, which emsjax does not have, or
        repeat what is known.
      fixed: ignored parts that must hold a certain number if they are there, and that number.
      scales: parts that must be finite numbers.
      undefined: parts of whole numbers that stand for scales, and the number that stands for NaN.
      aliases: parts that some checkpoints call by another name, and that name.
      int4: for modules that may be kept in 4 bits; None for other formats.
      header: a part that describes the others beyond their shapes; None if there is none.
      group_of: a part that holds the group of each input, see `filled_in`; None if there is none.
      layout: takes the shapes of a module's parts, and the content of the header if there is one,
        and returns its `Layout`. It raises `ValueError` or `IndexError` if the shape of the marker
        is impossible or the header is damaged.
      dequantised: takes a module's parts and returns its weights float32[out, in], exactly as the
        format defines them.
      joint: what stands between the name of a module and that of a part.
      weight: what the name of the weights has after that of their module.
      int8: for modules that are held in int8 with one scale per row: takes the parts and returns
        the numbers as they are. None for other formats.
    """

    name: str
    marker: str
    dtypes: frozenset[str]
    needed: tuple[str, ...]
    layout: Callable[..., Layout]
    dequantised: Callable[[Parts], np.ndarray]
    optional: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    fixed: Mapping[str, int] = field(default_factory=dict)
    scales: tuple[str, ...] = ()
    undefined: Mapping[str, int] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    joint: str = "."
    weight: str = ".weight"
    int8: Callable[[Parts], Int8] | None = None
    int4: Grid | None = None
    header: str | None = None
    group_of: str | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """All parts that are read."""
        return (self.marker, *self.needed, *self.optional)

    def tensor(self, module: str, part: str) -> str:
        """Returns the name of the tensor that holds a module's part."""
        return f"{module}{self.joint}{part}"


def filled_in(group_of: np.ndarray | None) -> np.ndarray | None:
    """Returns the group of each input; None if they lie one after another.

    Some files have the part and never filled it in: it is -1 throughout in those of
    compressed-tensors, and 0 in some of GPTQ, whose kernels (ExLlama's) then go by the order.
    """
    if group_of is None or (group_of == -1).all() or (group_of == 0).all():
        return None
    return group_of


def unpacked(words: np.ndarray, bits: int) -> np.ndarray:
    """Unpacks int32 words, lowest bits first, into uint8[..., 32 / bits * words].

    Args:
      words: int32[..., words].
      bits: bits of a number, a divisor of 8.
    """
    # The lowest byte comes first in memory, as it does in a word.
    data = np.ascontiguousarray(words).astype("<i4", copy=False).view(np.uint8)
    if bits == 8:
        return data
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    fields = (data[..., None] >> shifts) & np.uint8(2**bits - 1)
    return fields.reshape(*data.shape[:-1], -1)


def per_column(
    groups: np.ndarray, num_in: int, size: int | None, group_of: np.ndarray | None = None
) -> np.ndarray:
    """Spreads a number per group of columns, [out, G], over the columns, [out, in].

    Args:
      groups: a number for each row and group.
      num_in: the number of columns.
      size: the number of columns in a group, of which the last may have fewer; None for one group.
      group_of: int[in], the group of each column; None if columns are in order.
    """
    if group_of is not None:
        return groups[:, group_of]
    return np.repeat(groups, size or num_in, axis=1)[:, :num_in]
