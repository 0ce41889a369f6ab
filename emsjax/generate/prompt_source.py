"""Prompts from the command line, a file of JSON lines, or standard input."""

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
from emsjax.requests.prompt_line import check_text, parse
from emsjax.requests.sampling_params import SamplingParams

_HOW_TO_CALL = (
    'no prompt given; use --prompt "some text", --input FILE.jsonl, or a pipe on standard input '
    "(--help lists all options)."
)


@dataclass(frozen=True)
class Source:
    """The requests of a run.

    Attributes:
      lines: the requests, read lazily. None means that the next line has not arrived yet.
      total: the number of requests; None if it is only known at the end of the input.
      texts: the prompts, if they came as plain text; None for JSON lines.
    """

    lines: Iterable[jsonl.Line | jsonl.BadLine | None]
    total: int | None
    texts: tuple[str, ...] | None = None


@contextmanager
def open_source(options: Options) -> Iterator[Source]:
    """Opens the source of prompts that the options name; the lines are read lazily.

    Raises:
      UserError: the source cannot be read, is not text, or is missing or empty.
    """
    sampling = options.sampling()
    if options.prompt:
        yield from_texts(options.prompt, sampling)
    elif options.input not in (None, "-"):
        file = _open(str(options.input))
        try:
            yield Source(jsonl.read(_lines(file), sampling), _count(file))
        finally:
            # Anything but a regular file may have a thread waiting for a line, and closing it would
            # wait for that thread.
            if _is_file(file):
                file.close()
    else:
        yield _standard_input(sampling, json_lines=options.input == "-")


def from_texts(texts: Sequence[str], sampling: Mapping[str, Any]) -> Source:
    """Makes a source of plain prompts, numbered from 1, with the same sampling parameters."""
    params = SamplingParams(**sampling)
    lines = []
    for number, text in enumerate(texts, start=1):
        check_text(f"prompt {number}", text)
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
    """Counts the non-blank lines; None for a stream that cannot be read twice."""
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
    """Opens a second reader on standard input.

    The interpreter closes `sys.stdin` when it exits, and crashes if a thread is still waiting
    in it.
    """
    try:
        return open(stdin.fileno(), "rb", closefd=False)
    except OSError:  # not backed by a file
        return stdin.buffer


def _lines(stream: BinaryIO) -> Iterable[bytes | None]:
    """Reads the lines of a file directly, those of a pipe or a terminal without blocking."""
    return stream if _is_file(stream) else live_lines(stream)


def _is_file(stream: BinaryIO) -> bool:
    try:
        return stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except OSError:
        return True  # a stream in memory


def _first_line(stream: BinaryIO) -> list[bytes]:
    """Reads lines up to and including the first that is not blank."""
    head = []
    for raw in stream:
        head.append(raw)
        if raw.strip():
            return head
    raise UserError(f"standard input is empty: {_HOW_TO_CALL}")


def _is_object(raw: bytes) -> bool:
    try:
        return isinstance(parse(raw), dict)
    except ValueError:
        return False
