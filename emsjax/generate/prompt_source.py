"""Where prompts come from: the command line, a file of JSON lines, or standard input."""

import os
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, BinaryIO, TextIO

from emsjax.errors import UserError
from emsjax.generate.live_lines import live_lines
from emsjax.generate.options import Options
from emsjax.requests import jsonl
from emsjax.requests.sampling_params import SamplingParams

_HOW_TO_CALL = (
    'nothing to generate from; give --prompt "some text", --input FILE.jsonl, or a pipe on '
    "standard input (all options: --help)."
)


@dataclass(frozen=True)
class Source:
    """The requests of a run.

    Attributes:
      lines: read as they are asked for; None stands for "none is there yet".
      total: how many there are, None where only reading on would tell.
      texts: the prompts, where they came as plain text; None for JSON lines.
    """

    lines: Iterable[jsonl.Line | jsonl.BadLine | None]
    total: int | None
    texts: tuple[str, ...] | None = None


@contextmanager
def open_source(options: Options) -> Iterator[Source]:
    """Open what the options name; nothing is read ahead of need.

    Raises:
      UserError: it cannot be read, is not text, or there is none.
    """
    sampling = options.sampling()
    if options.prompt:
        yield from_texts(options.prompt, sampling)
    elif options.input not in (None, "-"):
        file = _open(str(options.input))
        try:
            yield Source(jsonl.read(_lines(file), sampling), _count(file))
        finally:
            if _is_file(file):  # else a thread may wait for a line, and closing would wait for it
                file.close()
    else:
        yield _standard_input(sampling, json_lines=options.input == "-")


def from_texts(texts: Sequence[str], sampling: Mapping[str, Any]) -> Source:
    """Plain prompts, numbered from 1, with the sampling parameters of that name."""
    params = SamplingParams(**sampling)
    lines = []
    for number, text in enumerate(texts, start=1):
        jsonl.check_text(f"prompt {number}", text)
        lines.append(jsonl.Line(number, number, f"prompt {number}", text, params))
    return Source(lines, len(lines), tuple(texts))


def _open(path: str) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise UserError(
            f"cannot read {path!r} ({error.strerror or error}); give --input a file of JSON lines."
        ) from error


def _count(file: BinaryIO) -> int | None:
    """Non-blank lines of a file that can be read twice."""
    if not file.seekable():
        return None
    count = sum(1 for raw in file if raw.strip())
    file.seek(0)
    return count


def _standard_input(sampling: Mapping[str, Any], json_lines: bool) -> Source:
    if sys.stdin is None or (sys.stdin.isatty() and not json_lines):
        raise UserError(_HOW_TO_CALL)
    stream = _unshared(sys.stdin)
    head = [] if json_lines else _first_line(stream)
    if json_lines or _is_object(head[-1]):
        return Source(jsonl.read(chain(head, _lines(stream)), sampling), None)
    try:
        text = b"".join(chain(head, stream)).decode()
    except UnicodeDecodeError:
        raise UserError("standard input is not UTF-8 text; convert it first.") from None
    return from_texts([text.removesuffix("\n")], sampling)


def _unshared(stdin: TextIO) -> BinaryIO:
    """Standard input through a reader of our own.

    The interpreter closes its own one at the end, and dies if a thread still waits in it.
    """
    try:
        return open(stdin.fileno(), "rb", closefd=False)
    except OSError:  # no file is behind it
        return stdin.buffer


def _lines(stream: BinaryIO) -> Iterable[bytes | None]:
    """Lines of a file as they are; of a pipe or a terminal, as they come."""
    return stream if _is_file(stream) else live_lines(stream)


def _is_file(stream: BinaryIO) -> bool:
    try:
        return stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except OSError:
        return True  # all of it is in memory


def _first_line(stream: BinaryIO) -> list[bytes]:
    """Lines up to the first that is not blank, it included."""
    head = []
    for raw in stream:
        head.append(raw)
        if raw.strip():
            return head
    raise UserError(f"standard input is empty: {_HOW_TO_CALL}")


def _is_object(raw: bytes) -> bool:
    try:
        return isinstance(jsonl.parse(raw), dict)
    except ValueError:
        return False
