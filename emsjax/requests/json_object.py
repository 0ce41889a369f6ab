"""The automaton of any JSON object, nested up to a depth.

Nesting without end has no automaton. So its states are pairs: the containers that are open, and a
place in the JSON text.
"""

from typing import NamedTuple

import numpy as np

# The levels of objects and lists, the outermost object included.
LEVELS = 4
_DIGITS, _NONZERO = frozenset(b"0123456789"), frozenset(b"123456789")
# The place after the first byte of a character in UTF-8: the range of the second byte, and how many
# follow it.
_FIRST = {
    **dict.fromkeys(range(194, 224), (128, 191, 0)),
    **dict.fromkeys(range(225, 240), (128, 191, 1)),
    **dict.fromkeys(range(241, 244), (128, 191, 2)),
    **{0xE0: (0xA0, 0xBF, 1), 0xED: (0x80, 0x9F, 1), 0xF0: (0x90, 0xBF, 2), 0xF4: (0x80, 0x8F, 2)},
}
# Where one space may come: before these places, which are then those with a blank behind.
_SPACED = frozenset({"first key", "key", "colon", "first value", "value", "end"})
# Each place of a number: where a dot, a digit, an exponent and a sign lead, by their first byte.
_NUMBER: dict[str, dict[int, str]] = {
    "minus": {ord("0"): "zero", **dict.fromkeys(_NONZERO, "whole")},
    "zero": {ord("."): "dot", ord("e"): "e", ord("E"): "e"},
    "whole": {**dict.fromkeys(_DIGITS, "whole"), ord("."): "dot", ord("e"): "e", ord("E"): "e"},
    "dot": dict.fromkeys(_DIGITS, "fraction"),
    "fraction": {**dict.fromkeys(_DIGITS, "fraction"), ord("e"): "e", ord("E"): "e"},
    "e": {**dict.fromkeys(_DIGITS, "power"), ord("+"): "sign", ord("-"): "sign"},
    "sign": dict.fromkeys(_DIGITS, "power"),
    "power": dict.fromkeys(_DIGITS, "power"),
}
_COMPLETE = frozenset({"zero", "whole", "fraction", "power"})


class _State(NamedTuple):
    """A state of the automaton.

    Attributes:
      open: the containers that are open, "{" or "[", the innermost last.
      place: the place in the text.
      rest: what must follow of a literal or a character.
    """

    open: str
    place: str
    rest: tuple[int, ...] | bytes = ()


def json_object() -> tuple[np.ndarray, np.ndarray]:
    """Returns the state after each byte, int32[N, 256], and which states are final, bool[N]."""
    start = _State("", "start")
    numbers, rows, waiting = {start: 0}, [], [start]
    for state in waiting:
        row = np.full(256, -1, np.int32)
        for byte in range(256):
            after = _after(state, byte)
            if after is not None:
                if after not in numbers:
                    numbers[after] = len(numbers)
                    waiting.append(after)
                row[byte] = numbers[after]
        rows.append(row)
    return np.stack(rows), np.asarray([state.place == "done" for state in waiting])


def _after(state: _State, byte: int) -> _State | None:
    """Returns the state after a byte; None if it is not allowed."""
    place = state.place
    if place in _SPACED and byte == ord(" "):
        return state._replace(place=f"{place} after a space")
    place = place.removesuffix(" after a space")
    if place in _NUMBER:
        return _in_number(state, byte)
    if place == "literal":
        return _in_literal(state.open, bytes(state.rest), byte)
    if place.startswith("string"):
        return _in_string(state, byte)
    return _between(state.open, place, byte)


def _in_number(state: _State, byte: int) -> _State | None:
    following = _NUMBER[state.place].get(byte)
    if following is not None:
        return state._replace(place=following)
    # Nothing marks the end of a number but what comes after it.
    return _after(state._replace(place="end"), byte) if state.place in _COMPLETE else None


def _in_literal(opened: str, rest: bytes, byte: int) -> _State | None:
    if byte != rest[0]:
        return None
    return _State(opened, "literal", rest[1:]) if rest[1:] else _State(opened, "end")


def _between(opened: str, place: str, byte: int) -> _State | None:
    """Returns the state after a byte that is between strings, numbers and literals."""
    letter = chr(byte)
    if place == "start":
        return _State("{", "first key") if letter == "{" else None
    if place in ("first key", "key") and letter == '"':
        return _State(opened, "string of a key")
    if place == "colon":
        return _State(opened, "value") if letter == ":" else None
    if place == "end" and letter == ",":
        return _State(opened, "key" if opened[-1] == "{" else "value")
    closing = {"first key": "}", "first value": "]"}.get(place)
    if place == "end":
        closing = "}" if opened[-1] == "{" else "]"
    if letter == closing:
        return _State(opened[:-1], "end" if opened[1:] else "done")
    return _value(opened, letter) if place in ("value", "first value") else None


def _value(opened: str, letter: str) -> _State | None:
    """Returns the state after the first byte of a value."""
    if letter == '"':
        return _State(opened, "string")
    if letter in "{[" and len(opened) < LEVELS:
        return _State(opened + letter, "first key" if letter == "{" else "first value")
    for word in ("true", "false", "null"):
        if letter == word[0]:
            return _State(opened, "literal", word[1:].encode())
    if letter == "-":
        return _State(opened, "minus")
    if letter == "0":
        return _State(opened, "zero")
    return _State(opened, "whole") if letter in "123456789" else None


def _in_string(state: _State, byte: int) -> _State | None:
    opened, place, rest = state
    plain = place.removesuffix(", escaped")
    if plain != place:
        return _State(opened, plain) if chr(byte) in '"\\/bfnrt' else None
    if rest:  # in the middle of a character
        low, high, more = rest
        after = _State(opened, place, (0x80, 0xBF, more - 1) if more else ())
        return after if low <= byte <= high else None
    after_all = {
        ord('"'): _State(opened, "colon" if place == "string of a key" else "end"),
        ord("\\"): _State(opened, f"{place}, escaped"),
        **{first: _State(opened, place, more) for first, more in _FIRST.items()},
    }
    return after_all.get(byte, state if 0x20 <= byte < 0x7F else None)
