"""The output of results: whole lines, each passed to the operating system when written."""

import os
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import IO, Self

from emsjax.errors import UserError
from emsjax.host.files import replacing
from emsjax.host.locks import Held, Lock, open_alone
from emsjax.requests import jsonl
from emsjax.requests.prompt_line import Record, parse

# Every record starts like this. A last line that starts differently is not a half-written record,
# so it must not be cut off.
_RECORD_START = b'{"id": '


class ResultFile:
    """An output that only ever holds whole lines.

    Made by `standard_output` or `open_output`. Lines are written unbuffered. Leaving the context
    cuts off a line that an interrupt left half-written, and removes a new file if the run failed
    before its first line.

    Attributes:
      name: the path as messages show it; "-" is standard output.
      finished: the results the file already holds, as a map from the key (`jsonl.key`) to the
        digest of the prompt.
    """

    def __init__(
        self,
        file: IO[bytes],
        name: str,
        keep: int = 0,
        finished: Mapping[str, str] = MappingProxyType({}),
        created: Path | None = None,
        lock: Lock | None = None,
    ):
        self._file = file
        self._lock = lock  # keeps other processes from writing to the file
        self._whole = keep  # bytes of whole lines
        self._created = created  # the path, if this run created the file
        self._dropped = False
        self._regular = name != "-" and stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        self.name = name
        self.finished = finished

    @property
    def empty(self) -> bool:
        """Whether the file holds no line, old or new."""
        return self._whole == 0

    def write(self, line: bytes) -> None:
        """Writes one whole line.

        Raises:
          UserError: the line cannot be written, for example because the device is full.
          BrokenPipeError: the reader of the pipe has closed it.
        """
        self._drop_old_lines()
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            raise _unwritable(self.name, error) from error
        self._whole += len(line)

    def _drop_old_lines(self) -> None:
        """Removes the lines to overwrite, once.

        This waits for the first new line, so that a run that fails before it loses nothing.
        """
        if self._regular and not self._dropped:
            self._file.truncate(self._whole)
            self._file.seek(self._whole)
        self._dropped = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._drop_old_lines()  # a successful run without results leaves an empty file
        if self._regular and self._file.tell() > self._whole:
            self._file.truncate(self._whole)
        self._file.close()
        if kind is not None and self.empty and self._created:
            self._created.unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.release()


def standard_output() -> ResultFile:
    """Opens standard output, unbuffered.

    Raises:
      UserError: standard output is closed.
    """
    if sys.stdout is None:
        raise UserError("standard output is closed; give --output a file.")
    sys.stdout.flush()
    file = os.fdopen(sys.stdout.fileno(), "wb", buffering=0, closefd=False)
    return ResultFile(file, "-")


def open_output(path: str, *, resume: bool = False, overwrite: bool = False) -> ResultFile:
    """Opens a result file for writing, creating it if it does not exist.

    Args:
      path: the file.
      resume: whether to keep existing results. Error records and a half-written last line are
        removed, so that those lines run again.
      overwrite: whether to replace existing results, which happens at the first new one.

    Raises:
      UserError: the file cannot be written, another process is writing to it, it holds results and
        neither `resume` nor `overwrite` is set, or `resume` is set and this program did not write
        the file.
    """
    try:
        if Path(path).is_dir():
            inside = os.path.join(path, "results.jsonl")
            raise UserError(f"{path!r} is a directory; give --output a file, such as {inside!r}.")
        there = Path(path).exists()
        if there and not Path(path).is_file():  # a pipe, a terminal or /dev/null
            return ResultFile(open(path, "wb", buffering=0), path)
        descriptor, lock = open_alone(Path(path), os.O_WRONLY | os.O_CREAT)
    except Held:
        raise UserError(
            f"another process is writing to {path!r}; wait for it, or give another --output."
        ) from None
    except OSError as error:
        raise _unwritable(path, error) from error
    file = os.fdopen(descriptor, "wb", buffering=0)
    try:
        held = os.fstat(descriptor).st_size > 0
        if held and not (resume or overwrite):
            raise UserError(
                f"{path!r} already holds results; give --resume to continue it, --overwrite to "
                "replace it, or another --output."
            )
        if resume and held:
            return _resume(file, path, lock)
        created = None if there or held else Path(path).resolve()
        return ResultFile(file, path, created=created, lock=lock)
    except BaseException as error:
        file.close()
        lock.release()
        if isinstance(error, OSError):
            raise _unwritable(path, error) from error
        raise


def _unwritable(name: str, error: OSError) -> UserError:
    return UserError(
        f"cannot write to {name!r} ({error.strerror or error}); fix that or give another --output."
    )


def _resume(file: IO[bytes], path: str, lock: Lock) -> ResultFile:
    """Continues a result file, removing its error records and its half-written last line."""
    finished, whole, errors = _scan(path)
    if errors:
        whole = _rewrite_without_errors(Path(path).resolve(), lock)
        file.close()
        file = open(path, "r+b", buffering=0)  # noqa: SIM115
    return ResultFile(file, path, whole, finished, lock=lock)


def _scan(path: str) -> tuple[dict[str, str], int, int]:
    """Returns the finished results, the bytes in whole lines, and the number of errors."""
    finished: dict[str, str] = {}
    whole = errors = 0
    with open(path, "rb") as file:
        for number, raw in enumerate(file, start=1):
            half_written = not raw.strip() or raw.startswith(_RECORD_START[: len(raw)])
            if not raw.endswith(b"\n") and half_written:
                break
            whole += len(raw)
            if not raw.strip():
                continue
            record = _record(raw, number, path)
            if "error" in record:
                errors += 1
            else:
                finished[jsonl.key(record["id"])] = record["prompt_digest"]
    return finished, whole, errors


def _record(raw: bytes, number: int, path: str) -> Record:
    try:
        record = parse(raw)
    except ValueError:
        record = None
    if isinstance(record, dict) and (_is_failure(record) or _is_result(record)):
        return record
    raise UserError(
        f"line {number} of {path!r} is not a result, and --resume only continues files written by "
        "this program; give another --output."
    )


def _is_failure(record: Record) -> bool:
    return record.keys() == {"id", "line", "error"}


def _is_result(record: Record) -> bool:
    named = isinstance(record.get("id"), str | int)
    return named and isinstance(record.get("prompt_digest"), str)


def _rewrite_without_errors(path: Path, lock: Lock) -> int:
    """Replaces the file by one with the finished results only; returns its size in bytes."""
    with open(path, "rb") as old, replacing(path, sync=True) as new:
        lock.take_in(new.fileno())  # no other process may find the new file unlocked
        for raw in old:
            whole_line = raw.endswith(b"\n") and raw.strip()
            if whole_line and "error" not in parse(raw):
                new.write(raw)
        return new.tell()
