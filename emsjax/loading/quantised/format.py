"""The description of a format: which tensors hold a module's weights, and what they mean."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from emsjax.loading.sources.int8 import Int8

Shape = tuple[int, ...]
# The tensors of one module, by their names after that of the module: "weight", "weight_scale".
Parts = Mapping[str, np.ndarray]


class Layout(NamedTuple):
    """The shapes of a module's tensors.

    Attributes:
      shape: of the weights that they hold, (out, in).
      parts: the shapes that each part may have; a part that is not named may have any.
    """

    shape: Shape
    parts: Mapping[str, Collection[Shape]]


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
      scales: parts that must be finite numbers.
      aliases: parts that some checkpoints call by another name, and that name.
      header: a part that describes the others beyond their shapes; None if there is none.
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
    scales: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    joint: str = "."
    weight: str = ".weight"
    int8: Callable[[Parts], Int8] | None = None
    header: str | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """All parts that are read."""
        return (self.marker, *self.needed, *self.optional)

    def tensor(self, module: str, part: str) -> str:
        """Returns the name of the tensor that holds a module's part."""
        return f"{module}{self.joint}{part}"


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
        if group_of.min(initial=0) < 0:
            raise ValueError("a column is in a group below 0")
        return groups[:, group_of]
    return np.repeat(groups, size or num_in, axis=1)[:, :num_in]
