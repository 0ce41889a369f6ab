"""Calls of tools in a model's text, in the style of Hermes and Qwen.

Such a model writes each call as a JSON object between two tags. What is not one stays text.
"""

import uuid
from typing import Any

from emsjax.host.json_text import to_json
from emsjax.requests.called_tools import BEGIN, END
from emsjax.requests.prompt_line import parse

Call = dict[str, Any]


class ToolText:
    """The text of an answer, which may come in pieces, without the calls in it.

    Attributes:
      calls: how many calls it had so far.
    """

    def __init__(self, several: bool = True) -> None:
        """Starts before the text.

        Args:
          several: whether there may be more calls than one; if not, later ones are dropped.
        """
        self.calls = 0
        self._several = several
        self._held = ""
        # Whether nothing but blanks has come since a call.
        self._after_call = False

    def feed(self, text: str, last: bool = False) -> tuple[str, list[Call]]:
        """Returns the text that is no call, and the calls, which are complete.

        Args:
          text: the next piece.
          last: whether it is the last one. Until then, the beginning of a call is held back.
        """
        self._held += text
        shown: list[str] = []
        calls: list[Call] = []
        while True:
            if self._after_call:
                self._held = self._held.lstrip()
                self._after_call = not self._held
            before, begun, rest = self._held.partition(BEGIN)
            inner, ended, after = rest.partition(END)
            if not begun or not (ended or last):
                break
            call = _call(inner, self.calls)
            if call is None:
                shown.append(before + BEGIN + inner + ended)
            else:
                shown.append(before.rstrip())
                if self._several or not self.calls:
                    calls.append(call)
                    self.calls += 1
                self._after_call = True
            self._held = after
        keep = 0 if last else _held_back(self._held)
        shown.append(self._held[: len(self._held) - keep])
        self._held = self._held[len(self._held) - keep :]
        return "".join(shown), calls


def _call(text: str, number: int) -> Call | None:
    """Returns the call that a JSON text is; None if it is none."""
    try:
        value = parse(text.strip().encode())
    except ValueError:
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if not isinstance(arguments, str):
        arguments = to_json(arguments, ensure_ascii=False)
    return {
        "index": number,
        "id": f"call_{uuid.uuid4().hex[:24]}",
        "type": "function",
        "function": {"name": value["name"], "arguments": arguments},
    }


def _held_back(text: str) -> int:
    """Returns how many of the last letters may belong to a call, blanks before it included."""
    place = text.find(BEGIN)
    if place < 0:
        longest = min(len(text), len(BEGIN) - 1)
        begun = (n for n in range(longest, 0, -1) if text.endswith(BEGIN[:n]))
        place = len(text) - next(begun, 0)
    return len(text) - len(text[:place].rstrip())
