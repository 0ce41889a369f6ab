"""Reading the TPU compiler's account of a kernel: bundles, units, memory.

A bundle is one instruction word; without waiting, it takes one cycle. Loops are nested by depth:
the body of the loop over blocks of keys and values is where the matrix units work.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

BUNDLE = re.compile(r"\s*(?:0x[0-9a-f]+|0)\s+(?:(LB|LH|LE|PB|PF|CT)\s*)?: (>*)")
VMEM = re.compile(r"space=vmem, size = (0x[0-9a-f]+), scoped, tag = '(.*?)'")
MATRIX_UNIT = "MXU"
# Spills and fills are also counted as stores and loads.
SPILLS = {"VSTORE:SPILL", "VLOAD:FILL"}


class Loop(NamedTuple):
    """The loop over blocks.

    Attributes:
      bundles: of one trip, without loops inside it.
      inner: bundles of one trip of each loop inside it, in order.
      outer: bundles at each level around it, outermost first: a grid step's own, and so on.
      least: cycles that the busiest unit takes for one trip's instructions, spills included.
      busiest: that unit.
      spills: registers put into memory and taken back.
      vmem_bytes: scratch of the kernel.
    """

    bundles: int
    inner: tuple[int, ...]
    outer: tuple[int, ...]
    least: int
    busiest: str
    spills: int
    vmem_bytes: int


def read_loop(dump: Path, kernel: str) -> Loop:
    """The loop over blocks of the newest kernel of that name in a dump directory.

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


def _newest(dump: Path, pattern: str) -> Path:
    found = [path for path in dump.glob(pattern) if "schedule-analysis" not in path.name]
    if not found:
        raise FileNotFoundError(f"the TPU compiler wrote no {pattern} into {dump}")
    return max(found, key=lambda path: int(path.name.split("-")[0]))


def _depths(text: str) -> tuple[list[int], list[int]]:
    """Loop depth of every bundle, and which bundles are heads of loops."""
    depths: list[int] = []
    heads = []
    for line in text.splitlines():
        if found := BUNDLE.match(line):
            if found[1] == "LB":
                heads.append(len(depths))
            depths.append(len(found[2]))
    return depths, heads


def _loops(depths: list[int], heads: list[int]) -> Iterator[tuple[int, int]]:
    """Depth and bundles of each loop's own body."""
    for head in heads:
        end = head
        while end < len(depths) and depths[end] >= depths[head]:
            end += 1
        yield depths[head], depths[head:end].count(depths[head])


def _utilisation(path: Path) -> tuple[dict[str, int], list[dict[str, int]]]:
    """How often each unit can be used in a bundle, and how often it is in each."""
    lines = path.read_text().splitlines()
    names = lines[1].split(", ")
    numbers = [[int(word) for word in line.split()] for line in lines[2:] if line[:1] != "="]
    capacity, *use = [dict(zip(names, row, strict=True)) for row in numbers if row]
    return capacity, use


def _total(use: list[dict[str, int]], depths: list[int], depth: int) -> dict[str, int]:
    there = [row for row, d in zip(use, depths, strict=True) if d == depth]
    return {name: sum(row[name] for row in there) for name in use[0]}
