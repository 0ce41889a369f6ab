"""The tables of grammars in a state, and which rows of them hold which grammar."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emsjax.engine.devices import ONE, SAME, Devices
from emsjax.limits import GRAMMAR_SET_BYTES, MAX_GRAMMAR_STATES
from emsjax.sampling.automaton import Automaton, Vocabulary
from emsjax.sampling.grammar import NO_ROW, WORD_BITS, Grammars, Tables
from emsjax.sampling.rows import NO_TOKEN
from emsjax.sampling.state import SamplingState, with_tables
from emsjax.shapes import round_up

# Rows that are copied to the device at a time, so that one program does for grammars of any size.
BLOCK_ROWS = 64


class Size(NamedTuple):
    """The rows of a grammar, or of a table for all grammars that are in use together.

    Attributes:
      states: the states, P of them.
      sets: the sets of tokens, A of them.
    """

    states: int
    sets: int


def table_size(vocab_size: int) -> Size:
    """Returns P and A; the bits of the vocabulary decide how many sets there are."""
    sets = min(GRAMMAR_SET_BYTES // (vocab_size // 8 + 1), MAX_GRAMMAR_STATES)
    return Size(MAX_GRAMMAR_STATES, max(sets // BLOCK_ROWS, 1) * BLOCK_ROWS)


def size_of(grammar: Automaton) -> Size:
    """Returns the rows that a grammar takes."""
    return Size(*(round_up(count, BLOCK_ROWS) for count in (len(grammar), len(grammar.allowed))))


def empty_tables(vocabulary: Vocabulary) -> Tables:
    """Returns a table without grammars."""
    rows, sets = table_size(len(vocabulary))
    return Tables(
        allowed=jnp.zeros((sets, -(-len(vocabulary) // WORD_BITS)), jnp.uint32),
        sets=jnp.zeros(rows, jnp.int32),
        following=jnp.full((rows, 256), NO_ROW, jnp.int32),
        final=jnp.zeros(rows, jnp.bool),
        closed=jnp.zeros(rows, jnp.bool),
        guess=jnp.full(rows, NO_TOKEN, jnp.int32),
        starts=jnp.asarray(vocabulary.starts),
        bytes=jnp.asarray(vocabulary.bytes),
    )


def put_rows(grammars: Grammars, first: jax.Array, block: dict[str, jax.Array]) -> Grammars:
    """Returns the grammars with `BLOCK_ROWS` rows of some tables replaced from `first` on."""
    tables = grammars.tables
    new = {
        name: jax.lax.dynamic_update_slice(
            getattr(tables, name), part, (first, *(0,) * (part.ndim - 1))
        )
        for name, part in block.items()
    }
    return grammars._replace(tables=tables._replace(**new))


def blocks_of(grammar: Automaton, first: Size) -> list[tuple[Any, dict[str, np.ndarray]]]:
    """Returns the rows of a grammar in blocks, as the arguments of `put_rows`.

    Args:
      grammar: the grammar.
      first: the rows of the tables at which it begins.
    """
    following = np.where(grammar.following >= 0, grammar.following + first.states, NO_ROW)
    states = {"sets": grammar.sets + first.sets, "following": following}
    states |= {"final": grammar.final, "closed": grammar.closed, "guess": grammar.guess}
    of_states = {name: array.astype(getattr(grammar, name).dtype) for name, array in states.items()}
    return [*_cut({"allowed": grammar.allowed}, first.sets), *_cut(of_states, first.states)]


def _cut(arrays: dict[str, np.ndarray], first: int) -> Iterator[tuple[Any, dict[str, np.ndarray]]]:
    """Yields `BLOCK_ROWS` rows at a time, the last ones padded, with the row to put them at."""
    count = len(next(iter(arrays.values())))
    for start in range(0, count, BLOCK_ROWS):
        parts = {name: array[start : start + BLOCK_ROWS] for name, array in arrays.items()}
        missing = BLOCK_ROWS - min(BLOCK_ROWS, count - start)
        padded = {
            name: np.pad(part, [(0, missing), *[(0, 0)] * (part.ndim - 1)])
            for name, part in parts.items()
        }
        yield np.int32(first + start), padded


@dataclass
class _Place:
    grammar: Automaton
    first: Size
    size: Size
    written: bool = False


class GrammarTable:
    """The program that fills the tables of states."""

    def __init__(self, devices: Devices = ONE):
        """Prepares the program, for devices that all have the whole table."""
        self._devices = devices
        self._put_rows = devices.program(put_rows, [SAME] * 3, SAME, donate=(0,))

    def put(
        self, sampling: SamplingState, grammar: Automaton, places: "Places"
    ) -> tuple[SamplingState, np.int32]:
        """Returns the state with a grammar in its tables, and the row at which it begins.

        Args:
          sampling: of all slots; without tables, it gets some.
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
        return sampling.replace(grammars=grammars), np.int32(first.states)

    def compile(self, sampling: SamplingState, grammar: Automaton) -> None:
        """Compiles what `put` runs, for a state of these shapes."""
        blocks = blocks_of(grammar, Size(0, 0))
        for block in (blocks[0], blocks[-1]):  # of sets, and of states
            self._put_rows.lower(sampling.grammars, *block).compile()


class Places:
    """Which rows of one state's tables hold which grammar.

    Grammars that no slot uses any more keep their rows until another one needs them.
    """

    def __init__(self, size: Size):
        """Starts with tables of free rows."""
        self._size = size
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
        size = size_of(grammar)
        while (first := self._gaps(kept, size)) is None:
            unused = next((each for each in kept if each.grammar not in used), None)
            if unused is None:
                return False
            kept.remove(unused)
        self._places = [*kept, _Place(grammar, first, size)]
        return True

    def take(self, grammar: Automaton) -> tuple[Size, bool]:
        """Returns the first rows of a grammar that has room, and whether it must be written."""
        place = self._find(grammar)
        assert place is not None
        self._places.remove(place)
        self._places.append(place)
        new, place.written = not place.written, True
        return place.first, new

    def of(self, grammar: Automaton, copy: Automaton) -> "Places":
        """Returns the place of one grammar alone, as that of a copy, which another host has."""
        place = self._find(grammar)
        assert place is not None
        alone = Places(self._size)
        alone._places = [replace(place, grammar=copy)]
        return alone

    def _find(self, grammar: Automaton) -> _Place | None:
        return next((each for each in self._places if each.grammar is grammar), None)

    def _gaps(self, places: list[_Place], size: Size) -> Size | None:
        """Returns the first of as many rows of each table as no place has; None without any."""
        found = []
        for table, count in enumerate(size):
            first = 0
            for place in sorted(places, key=lambda each: each.first[table]):
                if place.first[table] - first >= count:
                    break
                first = place.first[table] + place.size[table]
            if first + count > self._size[table]:
                return None
            found.append(first)
        return Size(*found)
