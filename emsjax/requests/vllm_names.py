"""Names of vLLM that emsjax does not have: which values are harmless, and what to use instead.

The tables are in `vllm_llm`, `vllm_requests` and `speculative_config`. `docs/python.md` shows
them, and a test holds the two together.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import wraps
from typing import Any, TypeVar

from emsjax.errors import UserError, short

_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Foreign:
    """Some names of vLLM that emsjax does not have.

    Attributes:
      instead: the counterpart in emsjax, or that there is none; it ends a message.
      names: each name with the values that are accepted, because emsjax does just that.
    """

    instead: str
    names: Mapping[str, tuple[Any, ...]]


def foreign_names(instead: str, **names: Any) -> Foreign:
    """Makes one entry; a value that is not a tuple is the only one accepted."""
    return Foreign(instead, {n: v if isinstance(v, tuple) else (v,) for n, v in names.items()})


def refuse(name: str, value: Any, foreign: Sequence[Foreign]) -> bool:
    """Returns whether `name` is in the table with a value that is accepted.

    Args:
      name: the name.
      value: its value.
      foreign: the table.

    Returns:
      True if the value may be dropped, False if the name is not in the table.

    Raises:
      UserError: the value is not accepted; the message says what to use instead.
    """
    for entry in foreign:
        if name in entry.names:
            if any(_same(value, harmless) for harmless in entry.names[name]):
                return True
            raise UserError(f"{name}={short(value)} is vLLM's and not emsjax's; {entry.instead}")
    return False


def _same(value: Any, harmless: Any) -> bool:
    # True is not 1 here, and arrays have no truth value.
    kinds = {type(value), type(harmless)}
    return (len(kinds) == 1 or kinds == {int, float}) and bool(value == harmless)


def takes_vllm_names(what: str, foreign: Sequence[Foreign]) -> Callable[[_Function], _Function]:
    """Lets a function accept keywords of vLLM whose values change nothing.

    All other keywords that the function does not have raise a `UserError` that names the
    counterpart, or the closest keyword that it does have.

    Args:
      what: what a keyword is called in messages, such as "an option of LLM".
      foreign: the table of vLLM's names.
    """

    def decorate(function: _Function) -> _Function:
        own = inspect.signature(function).parameters

        @wraps(function)
        def with_vllm_names(*args: Any, **given: Any) -> Any:
            for name in [name for name in given if name not in own]:
                if not refuse(name, given.pop(name), foreign):
                    raise UserError(unknown_name(name, what, own))
            return function(*args, **given)

        return with_vllm_names  # type: ignore[return-value]

    return decorate


def unknown_name(name: str, what: str, known: Iterable[str]) -> str:
    """Says that a name is unknown, and which one is like it."""
    names = [each for each in known if each != "self"]
    close = get_close_matches(name, names, n=1)
    advice = f"did you mean {close[0]}?" if close else f"use one of {', '.join(names)}"
    return f"{short(name)} is not {what}; {advice}"
