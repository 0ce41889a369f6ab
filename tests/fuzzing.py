"""What all fuzzers share: the number of inputs, their seeds, mutations, and the verdict.

Each of the seventeen fuzzers tries about 140 inputs, which is over 2,000 in all.
`EMSJAX_FUZZ_INPUTS=1400 scripts/test -k fuzz` tries ten times as many. Seeds are fixed.
"""

import json
import os
import random
import signal
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import HealthCheck, settings

from emsjax.errors import UserError

# Of each fuzzer.
INPUTS = int(os.environ.get("EMSJAX_FUZZ_INPUTS", "140"))
# For fuzzers that Hypothesis feeds; `derandomize` fixes the seed.
FUZZ = settings(
    max_examples=INPUTS, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck)
)
_PATIENCE_S = 20.0
ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 2**31, 2**63, 10**30, -(10**9), 0.0, 0.5, -1.5, 1e300),
    *(float("nan"), float("inf"), "", "two", "\n\n", "x" * 3000, [], [[]], ["a"], [1, "a", None]),
    *({}, {"a": {"b": 1}}, {"type": "yarn"}, {"rope_type": "linear", "factor": 0}, [None] * 2000),
]


def survives(call: Callable[[], Any], about: object) -> bool:
    """Returns whether `call` succeeds, and fails unless its only error is a short `UserError`.

    Args:
      call: what to try.
      about: the input, for the report of a failure.
    """
    try:
        with _no_hang(about), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            call()
    except UserError as error:
        is_one_sentence(str(error), about)
        return False
    except Exception as error:
        raise AssertionError(f"{about!r:.300}: {error!r:.900}") from error
    return True


def is_one_sentence(message: str, about: object) -> None:
    """Fails unless a message is one line of fewer than 500 characters."""
    assert 0 < len(message) < 500, f"{len(message)} characters for {about!r:.300}: {message!r:.600}"
    assert len(message.splitlines()) == 1, f"{about!r:.300}: {message!r}"


@contextmanager
def _no_hang(about: object) -> Iterator[None]:
    """Interrupts the block after some seconds, and then fails."""
    late = []

    def interrupt(*_: object) -> None:
        late.append(True)
        raise KeyboardInterrupt  # no library may turn this into another error

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, _PATIENCE_S)
    try:
        yield
    except KeyboardInterrupt:
        assert not late, f"no end for {about!r:.300}"
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def mutated(rng: random.Random, value: Any) -> Any:
    """Returns a JSON value with one part replaced, removed, renamed or doubled."""
    if isinstance(value, dict) and value and rng.random() < 0.95:
        key = rng.choice(list(value))
        changed = dict(value)
        action = rng.random()
        if action < 0.1:
            del changed[key]
        elif action < 0.2:
            changed[str(key) + rng.choice(["_x", "\u2028", " "])] = rng.choice(ODD)
        else:
            changed[key] = mutated(rng, value[key])
        return changed
    if isinstance(value, list) and value and rng.random() < 0.6:
        at = rng.randrange(len(value))
        return rng.choice([value[:at], value + value[at:], [*value[:at], mutated(rng, value[at])]])
    return rng.choice(ODD)


def text_of(rng: random.Random, value: Any) -> str:
    """Returns a mutated value as JSON, sometimes cut off or with a byte changed."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        value = mutated(rng, value)
    text = json.dumps(value)
    if rng.random() < 0.1:
        at = rng.randrange(len(text) + 1)
        text = text[:at] + rng.choice(["", "}", "[" * 5000, "\x00"]) + text[at + 1 :]
    return text


def damaged_bytes(rng: random.Random, content: bytes, header: int) -> bytes:
    """Returns a file with a few bytes of its header changed, or cut off."""
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(header)
        odd = rng.choice([0, 1, 255, 2**31, 2**32 - 1, 2**63, 2**64 - 1, rng.getrandbits(64)])
        piece = struct.pack("<Q", odd)[: rng.choice([1, 4, 8])]
        changed[at : at + len(piece)] = piece
    return bytes(changed[: rng.randrange(len(changed))] if rng.random() < 0.1 else changed)
