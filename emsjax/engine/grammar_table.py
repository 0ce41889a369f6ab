"""The table of grammars in a state, and which rows of it hold which grammar."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emsjax.engine.devices import ONE, SAME, Devices
from emsjax.limits import GRAMMAR_TABLE_BYTES, MAX_GRAMMAR_STATES
from emsjax.sampling.automaton import Automaton, Vocabulary
from emsjax.sampling.grammar import NO_ROW, WORD_BITS, Grammars, Tables
from emsjax.sampling.rows import NO_TOKEN
from emsjax.sampling.state import SamplingState, with_tables
from emsjax.shapes import round_up

# Rows that are copied to the device at a time, so that one program does for grammars of any size.
BLOCK_ROWS = 64
# The fields of `Tables` that have a row for each state of a grammar.
_OF_ROWS = ("allowed", "following", "final", "closed", "guess")


def table_rows(vocab_size: int) -> int:
    """Returns P, the rows of the table: the most states of all grammars that are in use together.

    The bits of the tokens and the rows after each byte decide how many fit.
    """
    row_bytes = vocab_size // 8 + 4 * 256
    rows = min(GRAMMAR_TABLE_BYTES // row_bytes, MAX_GRAMMAR_STATES)
    return max(rows // BLOCK_ROWS, 1) * BLOCK_ROWS


def empty_tables(vocabulary: Vocabulary) -> Tables:
    """Returns a table without grammars."""
    rows = table_rows(len(vocabulary))
    return Tables(
        allowed=jnp.zeros((rows, -(-len(vocabulary) // WORD_BITS)), jnp.uint32),
        following=jnp.full((rows, 256), NO_ROW, jnp.int32),
        final=jnp.zeros(rows, jnp.bool),
        closed=jnp.zeros(rows, jnp.bool),
        guess=jnp.full(rows, NO_TOKEN, jnp.int32),
        starts=jnp.asarray(vocabulary.starts),
        bytes=jnp.asarray(vocabulary.bytes),
    )


def put_rows(grammars: Grammars, first: jax.Array, *block: jax.Array) -> Grammars:
    """Returns the grammars with `BLOCK_ROWS` rows of the table replaced from `first` on."""
    tables = grammars.tables
    new = {
        name: jax.lax.dynamic_update_slice(
            getattr(tables, name), part, (first, *(0,) * (part.ndim - 1))
        )
        for name, part in zip(_OF_ROWS, block, strict=True)
    }
    return grammars._replace(tables=tables._replace(**new))


def blocks_of(grammar: Automaton, first: int) -> list[tuple[Any, ...]]:
    """Returns the rows of a grammar in blocks, as the arguments of `put_rows`.

    Args:
      grammar: the grammar.
      first: the row of the table at which it begins.
    """
    rows = round_up(len(grammar), BLOCK_ROWS)
    following = np.where(grammar.following >= 0, grammar.following + first, NO_ROW)
    changed = {"following": following}
    arrays = tuple(changed.get(name, getattr(grammar, name)) for name in _OF_ROWS)
    padded = tuple(
        np.pad(x, [(0, rows - len(x)), *[(0, 0)] * (x.ndim - 1)]).astype(x.dtype) for x in arrays
    )
    return [
        (np.int32(first + start), *(x[start : start + BLOCK_ROWS] for x in padded))
        for start in range(0, rows, BLOCK_ROWS)
    ]


@dataclass
class _Place:
    grammar: Automaton
    first: int
    end: int
    written: bool = False


class GrammarTable:
    """The program that fills the tables of states."""

    def __init__(self, devices: Devices = ONE):
        """Prepares the program, for devices that all have the whole table."""
        self._devices = devices
        places = [SAME] * (2 + len(_OF_ROWS))
        self._put_rows = devices.program(put_rows, places, SAME, donate=(0,))

    def put(
        self, sampling: SamplingState, grammar: Automaton, places: "Places"
    ) -> tuple[SamplingState, np.int32]:
        """Returns the state with a grammar in its table, and the row at which it begins.

        Args:
          sampling: of all slots; without a table, it gets one.
          grammar: has room.
          places: of this state's table.
        """
        if sampling.grammars is None:
            places.forget()
            tables = self._devices.to_all(empty_tables(grammar.vocabulary))
            sampling = with_tables(sampling, tables)
        first, new = places.take(grammar)
        grammars = sampling.grammars
        for block in blocks_of(grammar, first) if new else ():
            grammars = self._put_rows(grammars, *block)
        return sampling.replace(grammars=grammars), np.int32(first)

    def compile(self, sampling: SamplingState, grammar: Automaton) -> None:
        """Compiles what `put` runs, for a state of these shapes."""
        self._put_rows.lower(sampling.grammars, *blocks_of(grammar, 0)[0]).compile()


class Places:
    """Which rows of one state's table hold which grammar.

    Grammars that no slot uses any more keep their rows until another one needs them.
    """

    def __init__(self, rows: int):
        """Starts with P free rows."""
        self._rows = rows
        self._places: list[_Place] = []  # last of use longest ago first

    def forget(self) -> None:
        """Notes that the table has lost all grammars."""
        for place in self._places:
            place.written = False

    def make_room(self, grammar: Automaton, used: Collection[Automaton]) -> bool:
        """Finds rows for a grammar; returns whether there are any.

        Args:
          grammar: the grammar.
          used: the grammars of all slots, whose rows stay.
        """
        if self._find(grammar) is not None:
            return True
        kept = list(self._places)
        size = round_up(len(grammar), BLOCK_ROWS)
        while (first := self._gap(kept, size)) is None:
            unused = next((each for each in kept if each.grammar not in used), None)
            if unused is None:
                return False
            kept.remove(unused)
        self._places = [*kept, _Place(grammar, first, first + size)]
        return True

    def take(self, grammar: Automaton) -> tuple[int, bool]:
        """Returns the first row of a grammar that has room, and whether it must be written."""
        place = self._find(grammar)
        assert place is not None
        self._places.remove(place)
        self._places.append(place)
        new, place.written = not place.written, True
        return place.first, new

    def _find(self, grammar: Automaton) -> _Place | None:
        return next((each for each in self._places if each.grammar is grammar), None)

    def _gap(self, places: list[_Place], size: int) -> int | None:
        """Returns the first of `size` rows that no place has; None if there are none."""
        first = 0
        for place in sorted(places, key=lambda each: each.first):
            if place.first - first >= size:
                return first
            first = place.end
        return first if self._rows - first >= size else None
