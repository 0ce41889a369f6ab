"""Compiles a regular expression to an automaton over bytes.

A program of its own, because the library gives up the whole process if an automaton needs more
memory than there is. It reads a task from standard input and writes its result to standard output,
both in JSON.
"""

import base64
import json
import re
import sys
from array import array
from typing import Any

# The most memory of the process in bytes, and its seconds, where the system can limit them.
_MEMORY, _SECONDS = 1 << 30, 10
# Bytes that a pattern in a JSON text must not match: they would end the string, or be no JSON.
_UNSAFE = frozenset([*range(0x20), ord('"'), ord("\\")])
# What is put around texts, which never have it.
# Before a text in JSON: the library also makes an automaton that begins anywhere in a text, and
# takes time that grows exponentially with the length of strings for it, unless it finds no
# beginning inside them.
# After each text: where a text may end and also go on, the library drops bytes after which it may
# not end at once, such as the comma of `a(,a)*`. So no text ends before this.
_MARK = r"\x00"
_WHITE = frozenset(b" \t\r\n")


def main() -> None:
    """Does one task."""
    task = json.load(sys.stdin)
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):  # not every system has it
        pass
    try:
        result = _result(task)
    except MemoryError:
        raise
    except BaseException as error:  # a panic of a library in Rust is no Exception
        result = {"error": f"{error}"[:300]}
    json.dump(result, sys.stdout, allow_nan=False)


def _result(task: dict[str, Any]) -> dict[str, Any]:
    """Returns the automaton's rows and final states, or an error."""
    for pattern in task["patterns"]:
        if _used(pattern) & _UNSAFE:
            return {
                "error": f"the pattern {pattern!r} allows a quote, a backslash or a control "
                'character, as . does; exclude them, as in [^"\\\\\\x00-\\x1f]'
            }
    white = task["white"]
    if white is not None and _used(white) - _WHITE:
        return {"error": f"whitespace_pattern {white!r} allows more than white space"}
    try:
        following, final = _automaton(task["regex"], task["most"], json_text=task["json"])
    except _TooManyError as error:
        return {"states": error.args[0]}
    flat = array("i", [target for row in following for target in row])
    return {"following": base64.b64encode(flat.tobytes()).decode(), "final": final}


class _TooManyError(Exception):
    """An automaton has so many states."""


def _automaton(
    regex: str, most: int | None = None, *, json_text: bool = False
) -> tuple[list[list[int]], list[bool]]:
    """Returns the state after each byte, -1 if it is not allowed, and which states are final.

    Args:
      regex: the regular expression.
      most: the most states; None for no limit.
      json_text: whether all texts are JSON, without control characters.

    Raises:
      _TooManyError: there are more states than `most`.
    """
    from outlines_core import Index, Vocabulary

    # With bytes as tokens, an index is an automaton over bytes. The id 256 stands for the end.
    vocabulary = Vocabulary(256, {bytes([byte]): [byte] for byte in range(256)})
    regex = _whole(regex)
    if ")" in regex and not json_text:
        Index(regex, vocabulary)  # raises an error for one like `a)|(b`, which would leave a group
    index = Index(f"{_MARK if json_text else ''}(?:{regex}){_MARK}", vocabulary)
    transitions, ended = index.get_transitions(), set(index.get_final_states())
    first = index.get_initial_state()
    if json_text:
        first = transitions.pop(first, {}).get(0)
        if first is None:
            raise ValueError("no text fits it")
    states = [first, *(state for state in transitions if state != first and state not in ended)]
    if most is not None and len(states) > most:
        raise _TooManyError(len(states))
    number = {state: place for place, state in enumerate(states)}
    following = [[-1] * 256 for _ in states]
    for row, state in zip(following, states, strict=True):
        for byte, target in transitions[state].items():
            if byte:
                row[byte] = number[target]
    return following, [transitions[state].get(0) in ended for state in states]


def _whole(regex: str) -> str:
    """Returns an expression of whole texts without the anchors at its ends, which say nothing."""
    end = re.search(r"(?<!\\)(?:\\\\)*\$\Z", regex)
    return (regex[:-1] if end else regex).removeprefix("^")


def _used(regex: str) -> frozenset[int]:
    """Returns the bytes of all texts that a regular expression matches."""
    following, _ = _automaton(regex)
    return frozenset(byte for row in following for byte in range(256) if row[byte] >= 0)


if __name__ == "__main__":
    main()
