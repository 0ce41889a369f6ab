"""Block sizes that were measured to be the fastest, by device, kernel and shapes.

A kernel asks with what its heuristics chose and gets it back, with the numbers replaced for which
the table has an entry. So an empty table changes nothing. `python -m emsjax.pallas_kernels.tune`
fills it on a device.

The sizes that a kernel asks with never include the number of rows: how a sum is divided must not
depend on it, or a row's bits would.
"""

import contextlib
import functools
import json
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from emsjax.pallas_kernels.backends import target_device

FILE = Path(__file__).with_name("tuned.json")


class Lookup(NamedTuple):
    """What a kernel asked for.

    Attributes:
      kernel: the operation and the backend, such as "ragged_attention/tpu".
      sizes: a named tuple of whole numbers, on which the choice depends.
      blocks: a named tuple of whole numbers, what the heuristics chose.
    """

    kernel: str
    sizes: Any
    blocks: Any


# Device, kernel and sizes.
Key = tuple[str, str, tuple[tuple[str, int], ...]]
_Blocks = TypeVar("_Blocks", bound=tuple[int, ...])
_NOTED: ContextVar[list[Lookup] | None] = ContextVar("noted_lookups", default=None)
_TRIED: ContextVar[Mapping[str, Mapping[str, int]] | None] = ContextVar("tried", default=None)


def tuned(kernel: str, sizes: Any, blocks: _Blocks) -> _Blocks:
    """Returns the block sizes to use.

    Args:
      kernel: see `Lookup`.
      sizes: see `Lookup`.
      blocks: see `Lookup`.

    Raises:
      ValueError: the table's entry is for a kernel with other block sizes.
    """
    if (noted := _NOTED.get()) is not None:
        noted.append(Lookup(kernel, sizes, blocks))
    if (tried := _TRIED.get()) is not None:
        return _replaced(blocks, tried.get(kernel, {}), kernel)
    device = target_device()
    return _replaced(blocks, table().get(key_of(device, kernel, sizes._asdict()), {}), kernel)  # type: ignore[attr-defined]


def _replaced(blocks: _Blocks, by: Mapping[str, int], kernel: str) -> _Blocks:
    fields = blocks._fields  # type: ignore[attr-defined]
    if unknown := set(by).difference(fields):
        raise ValueError(f"{FILE.name}: {kernel} has no {unknown.pop()}, only {', '.join(fields)}")
    return blocks._replace(**by)  # type: ignore[attr-defined]


def key_of(device: str | None, kernel: str, sizes: Mapping[str, int]) -> Key:
    """Returns what identifies an entry of the table."""
    return device or "", kernel, tuple(sorted(sizes.items()))


@functools.cache
def table() -> Mapping[Key, Mapping[str, int]]:
    """Returns the block sizes by key; the file is read once."""
    entries = json.loads(FILE.read_text(encoding="utf-8"))
    found = {
        key_of(each["device"], each["kernel"], each["sizes"]): each["blocks"] for each in entries
    }
    return MappingProxyType(found)


@contextlib.contextmanager
def noting_lookups() -> Iterator[list[Lookup]]:
    """Yields a list that collects what the kernels traced inside ask for."""
    noted: list[Lookup] = []
    token = _NOTED.set(noted)
    try:
        yield noted
    finally:
        _NOTED.reset(token)


@contextlib.contextmanager
def trying(kernel: str, blocks: Mapping[str, int]) -> Iterator[None]:
    """Makes programs traced inside use these block sizes, and the heuristics for all others."""
    token = _TRIED.set({kernel: blocks})
    try:
        yield
    finally:
        _TRIED.reset(token)
