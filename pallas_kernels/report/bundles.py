"""Reads the TPU compiler's account of a kernel: bundles, units and memory.

A bundle is one instruction word, and takes one cycle unless it waits. Loops are told apart by their
depth: the loop over blocks of keys and values is the one whose body uses the matrix units most.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

BUNDLE = re.compile(r"\s*(?:0x[0-9a-f]+|0)\s+(?:(LB|LH|LE|PB|PF|CT)\s*)?: (>*)")
VMEM = re.compile(r"space=vmem, size = (0x[0-9a-f]+), scoped, tag = '(.*?)'")
MATRIX_UNIT = "MXU"
# The compiler counts spills and fills as stores and loads, too.
SPILLS = {"VSTORE:SPILL", "VLOAD:FILL"}


class Loop(NamedTuple):
    """The loop over blocks of keys and values.

    Attributes:
      bundles: bundles of one trip, without the loops inside it.
      inner: bundles of one trip of each loop inside it, in order.
      outer: bundles at each level around it, outermost first, starting with a grid step's.
      least: cycles that the busiest unit needs for one trip's instructions, spills included.
      busiest: the name of that unit.
      spills: stores and loads of spilled registers in one trip.
      vmem_bytes: scratch memory of the kernel.
    """

    bundles: int
    inner: tuple[int, ...]
    outer: tuple[int, ...]
    least: int
    busiest: str
    spills: int
    vmem_bytes: int


def read_loop(dump: Path, kernel: str) -> Loop:
    """Reads the loop over blocks of the newest kernel of a name.

    Args:
      dump: directory that the compiler wrote into.
      kernel: the kernel's name.

    Raises:
      FileNotFoundError: the compiler wrote nothing about such a kernel.
    """
    final = _newest(dump, f"*-{kernel}*-final_bundles.txt")
    stamp = final.name.split("-")[0]
    units, use = _utilisation(next(dump.glob(f"{stamp}-*final_hlo-static-per-bundle*")))
    depths, heads = _depths(final.read_text())
    depth = max(range(max(depths) + 1), key=lambda d: _total(use, depths, d)[MATRIX_UNIT])
    needed = _total(use, depths, depth)
    cycles = {
        name: math.ceil(needed[name] / capacity)
        for name, capacity in units.items()
        if name not in SPILLS
    }
    busiest = max(cycles, key=lambda name: cycles[name])
    original = next(dump.glob(f"{stamp}-*-original.txt")).read_text()
    return Loop(
        bundles=depths.count(depth),
        inner=tuple(size for d, size in _loops(depths, heads) if d == depth + 1),
        outer=tuple(depths.count(level) for level in range(1, depth)),
        least=cycles[busiest],
        busiest=busiest,
        spills=sum(needed[name] for name in SPILLS),
        vmem_bytes=sum(int(size, 16) for size, _ in VMEM.findall(original)),
    )


def read_bundles(dump: Path, kernel: str, trips: list[int]) -> int:
    """Returns the bundles of the newest kernel of a name whose loops have no loops inside them.

    Args:
      dump: directory that the compiler wrote into.
      kernel: the kernel's name.
      trips: of each of its loops, in order.

    Raises:
      FileNotFoundError: the compiler wrote nothing about such a kernel.
      ValueError: the kernel has another number of loops.
    """
    depths, heads = _depths(_newest(dump, f"*-{kernel}*-final_bundles.txt").read_text())
    loops = list(_loops(depths, heads))
    in_loops = sum(n * size for n, (_, size) in zip(trips, loops, strict=True))
    return len(depths) - sum(size for _, size in loops) + in_loops


def _newest(dump: Path, pattern: str) -> Path:
    """The file with the highest number at the start of its name."""
    found = [path for path in dump.glob(pattern) if "schedule-analysis" not in path.name]
    if not found:
        raise FileNotFoundError(f"the TPU compiler wrote no {pattern} into {dump}")
    return max(found, key=lambda path: int(path.name.split("-")[0]))


def _depths(text: str) -> tuple[list[int], list[int]]:
    """The loop depth of every bundle, and the indices of the bundles that start a loop."""
    depths: list[int] = []
    heads = []
    for line in text.splitlines():
        if found := BUNDLE.match(line):
            if found[1] == "LB":
                heads.append(len(depths))
            depths.append(len(found[2]))
    return depths, heads


def _loops(depths: list[int], heads: list[int]) -> Iterator[tuple[int, int]]:
    """Yields each loop's depth and its number of bundles without the loops inside it."""
    for head in heads:
        end = head
        while end < len(depths) and depths[end] >= depths[head]:
            end += 1
        yield depths[head], depths[head:end].count(depths[head])


def _utilisation(path: Path) -> tuple[dict[str, int], list[dict[str, int]]]:
    """How often each unit can be used in a bundle, and how often each bundle uses it."""
    lines = path.read_text().splitlines()
    names = lines[1].split(", ")
    numbers = [[int(word) for word in line.split()] for line in lines[2:] if line[:1] != "="]
    capacity, *use = [dict(zip(names, row, strict=True)) for row in numbers if row]
    return capacity, use


def _total(use: list[dict[str, int]], depths: list[int], depth: int) -> dict[str, int]:
    """Uses of each unit in all bundles at a depth."""
    rows = [row for row, d in zip(use, depths, strict=True) if d == depth]
    return {name: sum(row[name] for row in rows) for name in use[0]}
