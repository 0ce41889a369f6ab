"""Compiles structured outputs to automata for one model's vocabulary."""

import base64
import json
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from emsjax.errors import UserError, short
from emsjax.requests.called_tools import CalledTools
from emsjax.requests.json_object import json_object
from emsjax.requests.json_schema import schema_regex
from emsjax.requests.structured import StructuredOutputsParams
from emsjax.sampling.automaton import Automaton, NothingFitsError, Vocabulary, make_automaton

# Bytes of the automata that are kept for later requests, and how many are kept, errors included.
_KEPT_BYTES, _MOST_KEPT = 256 << 20, 256
_PROGRAM = Path(__file__).with_name("grammar_process.py")
# The white space between parts of JSON, where nothing else is asked for.
_WHITE = "[ ]?"
# Seconds after which a grammar is given up. The process itself gives up after fewer of its own.
_TIME_LIMIT = 20.0


class _TookTooLongError(UserError):
    """A grammar was given up, perhaps because the machine was busy: it may be asked for again."""


class Grammars:
    """The automata of a model's structured outputs; those of the latest requests are kept."""

    def __init__(
        self, token_bytes: Callable[[], list[bytes]], most_states: int, most_sets: int, name: str
    ):
        """Reads nothing yet.

        Args:
          token_bytes: returns the bytes of all tokens.
          most_states: the most states of an automaton.
          most_sets: the most different sets of tokens that its states allow.
          name: the model's name for messages.
        """
        self._token_bytes, self._name = token_bytes, name
        self._most, self._most_sets = most_states, most_sets
        self._vocabulary: Vocabulary | None = None
        self._made: OrderedDict[StructuredOutputsParams, Automaton | UserError] = OrderedDict()
        # Any thread may ask. One grammar is compiled at a time.
        self._lock = threading.Lock()

    def automaton(self, params: StructuredOutputsParams) -> Automaton:
        """Returns the automaton of an output, which a new one takes a moment to compile.

        Raises:
          UserError: the schema or regular expression is invalid or too large, no text fits it, or
            the library that compiles it is missing.
        """
        with self._lock:
            made = self._made.get(params)
            if made is None:
                try:
                    made = self._make(params)
                except _TookTooLongError:
                    raise
                except UserError as error:
                    made = error
                self._made[params] = made
                self._drop_old()
            self._made.move_to_end(params)
        if isinstance(made, UserError):
            raise UserError(str(made))
        return made

    def _drop_old(self) -> None:
        """Drops what was used longest ago, but never the newest."""
        while len(self._made) > 1 and (
            sum(made.nbytes for made in self._made.values() if isinstance(made, Automaton))
            > _KEPT_BYTES
            or len(self._made) > _MOST_KEPT
        ):
            self._made.popitem(last=False)

    def _make(self, params: StructuredOutputsParams) -> Automaton:
        if self._vocabulary is None:
            self._vocabulary = Vocabulary(self._token_bytes())
        if params.json_object:
            following, final = json_object()
        elif params.choice is not None:
            following, final = _of_texts(params.choice, self._most)
        else:
            following, final = _compiled(params, self._most)
        try:
            made = make_automaton(self._vocabulary, following, final)
        except NothingFitsError:
            raise UserError(
                f"no text that {self._name} can write fits structured_outputs; allow more"
            ) from None
        if len(made.allowed) > self._most_sets:
            raise UserError(
                f"structured_outputs have {len(made)} states with {len(made.allowed)} different "
                f"sets of tokens, more than the {self._most_sets} that fit on the device; have "
                "fewer choices or properties"
            )
        return made


def _compiled(params: StructuredOutputsParams, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the automaton over bytes: the state after each byte, and which states are final."""
    what, task = _kind(params), _task(params, most)
    try:
        result = _run(task)
    except subprocess.TimeoutExpired:
        raise _TookTooLongError(
            f"{what} took more than {_TIME_LIMIT:g} s to compile; try again, or shorten it"
        ) from None
    if result is None or "states" in result:
        raise _too_large(
            what, f"{result['states']} states" if result else "too much memory or time", most
        )
    if "error" in result:
        raise UserError(f"{what} cannot be compiled ({result['error']}); change it")
    following = np.frombuffer(base64.b64decode(result["following"]), np.int32).reshape(-1, 256)
    return following, np.asarray(result["final"], np.bool_)


def _too_large(what: str, size: str, most: int) -> UserError:
    return UserError(
        f"{what} needs {size}, more than the {most} states that fit on the device; shorten it, "
        "bound its lengths, or give fewer choices"
    )


def _of_texts(texts: Sequence[str], most: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the automaton of some texts: a state for each beginning."""
    rows: list[dict[int, int]] = [{}]
    ends = set()
    for text in texts:
        state = 0
        for byte in text.encode():
            if byte not in rows[state]:
                if len(rows) == most:
                    what = f"the list of {len(texts)} choices"
                    raise _too_large(what, f"over {most} states", most)
                rows[state][byte] = len(rows)
                rows.append({})
            state = rows[state][byte]
        ends.add(state)
    following = np.full((len(rows), 256), -1, np.int32)
    for state, row in enumerate(rows):
        following[state, list(row)] = list(row.values())
    return following, np.asarray([state in ends for state in range(len(rows))])


def _kind(params: StructuredOutputsParams) -> str:
    if isinstance(params, CalledTools):
        return "the schema of the tools"
    if params.json is not None:
        return "the JSON schema"
    return f"the regular expression {short(params.regex)}"


def _task(params: StructuredOutputsParams, most: int) -> dict[str, Any]:
    """Returns what `grammar_process` reads."""
    white = params.whitespace_pattern
    patterns: list[str] = []
    of_json = params.json is not None or isinstance(params, CalledTools)
    if isinstance(params, CalledTools):
        regex, patterns = params.regex_with(_WHITE)
    elif params.json is not None:
        regex, patterns = schema_regex(str(params.json), _WHITE if white is None else white)
    else:
        regex = str(params.regex)
    found = {"regex": regex, "patterns": patterns, "white": white, "most": most}
    return {**found, "json": of_json}


def _run(task: dict[str, Any]) -> dict[str, Any] | None:
    """Runs a task in a process of its own; returns None if it took too much.

    Raises:
      subprocess.TimeoutExpired: it took too long.
    """
    if find_spec("outlines_core") is None:
        raise UserError(
            "structured outputs need outlines_core, which is not installed; "
            "pip install 'emsjax[structured]'"
        )
    done = subprocess.run(
        # The folder of the program holds other modules, which must not be found.
        [sys.executable, "-P", str(_PROGRAM)],
        input=json.dumps(task, allow_nan=False).encode(),
        capture_output=True,
        timeout=_TIME_LIMIT,
        check=False,
    )
    return dict(json.loads(done.stdout)) if done.returncode == 0 else None
