"""Draws the worked example from the steps of the real loop: `python -m docs.figures.draw`."""

import xml.etree.ElementTree as ET
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from docs.figures.worked_example import CAPACITY, DRAFTED, TEXTS, WRONG, Seen, run

FILE = Path(__file__).with_name("worked_example.svg")
# In pixels: width and height of a cell, width of the labels, width of the drawing.
CELL, ROW, LABELS, WIDTH = 36, 24, 132, 700
NAMES = "ab"
SOLID, LIGHT = ("#1f5fbf", "#b3541e"), ("#cfe0fb", "#fbdcc7")
INK, GREY, PAPER = "#1b1b1b", "#8a8a8a", "#ffffff"


class Cell(NamedTuple):
    """One row of a buffer, or one place of a cache.

    Attributes:
      text: the content.
      fill: the colour, or the hatching of padding.
      ink: the colour of the text.
      edge: the colour of the border.
      dashed: whether the border is dashed.
    """

    text: str
    fill: str
    ink: str = INK
    edge: str = INK
    dashed: bool = False


PADDING = Cell("", "url(#hatch)", edge=GREY)
UNUSED = Cell("", PAPER, edge=GREY, dashed=True)


def known(slot: int, token: int) -> Cell:
    """Returns the cell of a sample's newest token, whose K/V is still missing."""
    return Cell(name(token), SOLID[slot], PAPER, SOLID[slot])


def right(slot: int, token: int) -> Cell:
    """Returns the cell of a draft token that is accepted, or of a valid token in the cache."""
    return Cell(name(token), LIGHT[slot], INK, SOLID[slot])


def wrong(slot: int) -> Cell:
    """Returns the cell of a draft token that is rejected, or of its remains in the cache."""
    return Cell("✗", PAPER, SOLID[slot], SOLID[slot], dashed=True)


def name(token: int) -> str:
    """Names a token by its sample and position."""
    return f"{NAMES[token // CAPACITY]}{token % CAPACITY}"


def buffer_cells(seen: Seen) -> list[Cell]:
    """Returns the rows of a step's buffer as cells."""
    cells = []
    for row, (token, slot) in enumerate(zip(seen.batch.tokens, seen.batch.slot_ids, strict=True)):
        if slot == len(NAMES):
            cells.append(UNUSED)
            continue
        place = row - seen.batch.cu_q_lens[slot]
        if place == 0:
            cells.append(known(slot, token))
        elif place > seen.plan.draft_lens[slot]:
            cells.append(PADDING)
        else:
            cells.append(wrong(slot) if token == WRONG else right(slot, token))
    return cells


def cache_cells(seen: Seen, slot: int) -> list[Cell]:
    """Returns a slot's cache after the step as cells, up to the last place ever written."""
    holes, cells = seen.holes[slot], []
    end = seen.kv_lens[slot] + holes.sum()
    for place, token in enumerate(seen.cache[slot]):
        if holes[place]:
            cells.append(PADDING)
        elif place < end:
            assert token == TEXTS[slot, place - holes[:place].sum()]
            cells.append(right(slot, token))
        elif token == WRONG:
            cells.append(wrong(slot))
    return cells


class Drawing:
    """An SVG that grows downwards."""

    def __init__(self, width: int):
        self.root = ET.Element("svg", xmlns="http://www.w3.org/2000/svg", width=str(width))
        self.root.set("font-family", "ui-monospace, Menlo, Consolas, monospace")
        self.root.set("font-size", "13")
        self._width, self._y = width, 12
        self._hatching()
        self._paper = self._rect(0, 0, width, 0, PAPER, PAPER)

    def _hatching(self) -> None:
        pattern = ET.SubElement(ET.SubElement(self.root, "defs"), "pattern", id="hatch")
        for key, value in {"width": "6", "height": "6", "patternUnits": "userSpaceOnUse"}.items():
            pattern.set(key, value)
        ET.SubElement(pattern, "rect", width="6", height="6", fill="#eeeeee")
        ET.SubElement(pattern, "path", d="M0 6L6 0", stroke=GREY)

    def _rect(self, x: int, y: int, width: int, height: int, fill: str, edge: str) -> ET.Element:
        places = {"x": x, "y": y, "width": width, "height": height}
        shape = {key: str(value) for key, value in places.items()}
        return ET.SubElement(self.root, "rect", shape, fill=fill, stroke=edge, rx="3")

    def _text(self, x: int, text: str, ink: str = INK, anchor: str = "start", **more: str) -> None:
        place = {"x": str(x), "y": str(self._y), "text-anchor": anchor}
        ET.SubElement(self.root, "text", place, fill=ink, **more).text = text

    def gap(self, height: int) -> None:
        """Leaves a vertical gap."""
        self._y += height

    def heading(self, text: str) -> None:
        """Adds a heading on a separate line."""
        self._y += 18
        self._text(10, text, **{"font-weight": "bold"})
        self._y += 10

    def row(self, label: str, cells: Iterable[Cell]) -> None:
        """Adds a label and a row of cells."""
        self._y += 17
        self._text(10, label)
        for number, cell in enumerate(cells):
            self._cell(LABELS + number * CELL, cell)
        self._y += ROW - 17 + 4

    def _cell(self, x: int, cell: Cell) -> None:
        box = self._rect(x + 1, self._y - 17, CELL - 3, ROW, cell.fill, cell.edge)
        if cell.dashed:
            box.set("stroke-dasharray", "3 2")
        self._text(x + CELL // 2 - 1, cell.text, cell.ink, "middle")

    def numbers(self, label: str, numbers: Iterable[int]) -> None:
        """Adds a label and small numbers, one under each cell of the row above."""
        self._y += 10
        small = {"font-size": "11"}
        self._text(10, label, GREY, **small)
        for number, value in enumerate(numbers):
            self._text(LABELS + number * CELL + CELL // 2 - 1, str(value), GREY, "middle", **small)
        self._y += 4

    def legend(self, entries: Iterable[tuple[Cell, str]]) -> None:
        """Adds one line for each kind of cell, with its meaning."""
        for cell, text in entries:
            self._y += 17
            self._cell(10, cell)
            self._text(10 + CELL + 8, text)
            self._y += ROW - 17 + 4

    def svg(self, title: str) -> str:
        """Returns the content of the SVG file."""
        height = str(self._y + 10)
        self.root.set("height", height)
        self.root.set("viewBox", f"0 0 {self._width} {height}")
        self._paper.set("height", height)
        self.root.set("role", "img")
        ET.SubElement(self.root, "title").text = title
        ET.indent(self.root)
        return ET.tostring(self.root, encoding="unicode") + "\n"


LEGEND = (
    (known(0, TEXTS[0, 3]), "sample a's newest token, position 3: its K/V is still missing"),
    (right(0, TEXTS[0, 4]), "a draft token that is accepted; in a cache, any valid token"),
    (wrong(0), "a draft token that is rejected: its K/V is overwritten by a later step"),
    (PADDING, "padding: a row computed, or a place of the cache read, for nothing"),
    (UNUSED, "a row of the buffer that no slot uses"),
)


def draw() -> str:
    """Returns the worked example as SVG."""
    drawing = Drawing(WIDTH)
    for number, (packed, padded) in enumerate(zip(run("ems"), run("vanilla"), strict=True)):
        drafted, emitted = DRAFTED[number], packed.emitted.tolist()
        assert emitted == padded.emitted.tolist()
        drawing.heading(
            f"Step {number + 1} drafts {drafted[0]} and {drafted[1]} tokens, "
            f"emits {emitted[0]} and {emitted[1]}"
        )
        _draw_inputs(drawing, packed, padded)
        for slot, sample in enumerate(NAMES):
            drawing.row(f"{sample}'s cache", cache_cells(packed, slot))
        for slot, sample in enumerate(NAMES):
            drawing.row(f"{sample}'s, aligned", cache_cells(padded, slot))
        drawing.gap(12)
    drawing.legend(LEGEND)
    return drawing.svg("Two steps of two samples: packed and padded inputs and caches")


def _draw_inputs(drawing: Drawing, packed: Seen, padded: Seen) -> None:
    for label, seen in (("packed", packed), ("padded", padded)):
        drawing.row(f"{label}, T = {len(seen.batch.tokens)}", buffer_cells(seen))
        if seen is packed:
            drawing.numbers("slot_ids", seen.batch.slot_ids)
            drawing.numbers("positions", np.where(seen.batch.slot_ids < 2, seen.batch.positions, 0))
            drawing.gap(8)
    drawing.gap(8)


if __name__ == "__main__":
    FILE.write_text(draw(), encoding="utf-8")
