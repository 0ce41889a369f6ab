"""Where results go: whole lines, each out of our hands as soon as it is written."""

import os
import shutil
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import IO, Self

from emsjax.errors import UserError
from emsjax.requests import jsonl

# Every record starts so; a last line that starts otherwise is not ours to cut off.
_RECORD_START = b'{"id": '


class ResultFile:
    """An output that only ever holds whole lines.

    Made by `standard_output` or `open_output`. Lines are written unbuffered; what an interrupt
    left half-written is cut off on the way out, and a new file that a failed run wrote nothing to
    is removed.

    Attributes:
      name: how messages call it; "-" is standard output.
      finished: the results it already holds: key (`jsonl.key`) to digest of the prompt.
    """

    def __init__(
        self,
        file: IO[bytes],
        name: str,
        keep: int = 0,
        finished: Mapping[str, str] = MappingProxyType({}),
        created: Path | None = None,
    ):
        self._file = file
        self._whole = keep  # bytes of whole lines
        self._created = created  # the file itself, where it was not there before
        self._dropped = False
        self._regular = name != "-" and stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        self.name = name
        self.finished = finished

    @property
    def empty(self) -> bool:
        """Whether it holds no line, old or new."""
        return self._whole == 0

    def write(self, line: bytes) -> None:
        """Write one whole line.

        Raises:
          UserError: the device is full or gone.
          BrokenPipeError: the reader has left.
        """
        self._drop_the_old()
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            raise _unwritable(self.name, error) from error
        self._whole += len(line)

    def _drop_the_old(self) -> None:
        """What is overwritten goes with the first new line: a run that gives none costs none."""
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
            self._drop_the_old()
        if self._regular and self._file.tell() > self._whole:
            self._file.truncate(self._whole)
        self._file.close()
        if kind is not None and self.empty and self._created:
            self._created.unlink(missing_ok=True)


def standard_output() -> ResultFile:
    """Give standard output, unbuffered.

    Raises:
      UserError: it is closed.
    """
    if sys.stdout is None:
        raise UserError("standard output is closed; give --output a file.")
    sys.stdout.flush()
    file = os.fdopen(sys.stdout.fileno(), "wb", buffering=0, closefd=False)
    return ResultFile(file, "-")


def open_output(path: str, *, resume: bool = False, overwrite: bool = False) -> ResultFile:
    """Open a result file for writing, creating it if need be.

    Args:
      path: where.
      resume: keep the results that are there; errors and a half-written last line go, so that
        those lines run again.
      overwrite: replace whatever is there, once there is a first result.

    Raises:
      UserError: it cannot be written; it holds results and neither `resume` nor `overwrite` is
        set; or it is to be resumed and was not written by this program.
    """
    try:
        if Path(path).is_dir():
            inside = os.path.join(path, "results.jsonl")
            raise UserError(f"{path!r} is a directory; give --output a file, say {inside!r}.")
        there = Path(path).exists()
        held = there and Path(path).stat().st_size > 0
        if held and not (resume or overwrite):
            raise UserError(
                f"{path!r} already holds results; give --resume to continue it, --overwrite to "
                "replace it, or another --output."
            )
        file = open(path, "r+b" if held else "wb", buffering=0)  # noqa: SIM115
        if not (resume and held):
            return ResultFile(file, path, created=None if there else Path(path).resolve())
        file.close()
        return _resume(path)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(name: str, error: OSError) -> UserError:
    return UserError(
        f"cannot write to {name!r} ({error.strerror or error}); mend that or give another --output."
    )


def _resume(path: str) -> ResultFile:
    """Open a file of results without its errors and its half-written last line."""
    finished, whole, errors = _scan(path)
    if errors:
        whole = _rewrite_without_errors(Path(path).resolve())
    file = open(path, "r+b", buffering=0)  # noqa: SIM115
    return ResultFile(file, path, whole, finished)


def _scan(path: str) -> tuple[dict[str, str], int, int]:
    """Find the finished results, the bytes of whole lines, and the number of errors."""
    finished: dict[str, str] = {}
    whole = errors = 0
    with open(path, "rb") as file:
        for number, raw in enumerate(file, start=1):
            ours = not raw.strip() or raw.startswith(_RECORD_START[: len(raw)])
            if not raw.endswith(b"\n") and ours:
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


def _record(raw: bytes, number: int, path: str) -> jsonl.Record:
    try:
        record = jsonl.parse(raw)
    except ValueError:
        record = None
    if isinstance(record, dict) and (_is_failure(record) or _is_result(record)):
        return record
    raise UserError(
        f"line {number} of {path!r} is not a result; --resume continues only a file that this "
        "program wrote: give another --output."
    )


def _is_failure(record: jsonl.Record) -> bool:
    return record.keys() == {"id", "line", "error"}


def _is_result(record: jsonl.Record) -> bool:
    named = isinstance(record.get("id"), str | int)
    return named and isinstance(record.get("prompt_digest"), str)


def _rewrite_without_errors(path: Path) -> int:
    """Replace the file by its finished results, at once; returns their bytes."""
    shorter = path.with_name(f"{path.name}.resume")
    with open(path, "rb") as old, open(shorter, "wb") as new:
        for raw in old:
            whole_line = raw.endswith(b"\n") and raw.strip()
            if whole_line and "error" not in jsonl.parse(raw):
                new.write(raw)
        new.flush()
        os.fsync(new.fileno())
        whole = new.tell()
    shutil.copymode(path, shorter)
    os.replace(shorter, path)
    return whole
