"""Processes that write the same files exclude each other, and a dead one excludes nobody."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from emsjax.errors import UserError
from emsjax.host import locks
from emsjax.host.files import new_directory, replace_text
from emsjax.host.locks import alone, alone_in, lock_of
from tests.together import in_processes

HERE = Path(__file__).parent
PROCESSES = 3


@pytest.mark.parametrize("rounds", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_many_writers(rounds: int, tmp_path: Path):
    turns = in_processes(HERE / "many_writers.py", rounds, tmp_path, count=PROCESSES)
    for turn, answers in enumerate(turns):
        made, counted, worked = zip(*answers, strict=True)
        text = (tmp_path / f"text-{turn}").read_text()
        assert len(text) == 200_000
        assert len(set(text)) == 1
        (owner,) = [name for name in made if len(name) == 1]
        files = {path.name: path.read_text() for path in (tmp_path / f"made-{turn}").iterdir()}
        assert files == {"a": owner, "b": owner}
        refusals = [each for each in made if each != owner]
        assert all("another process is writing" in x or "already exists" in x for x in refusals)
        assert int((tmp_path / f"counter-{turn}").read_text()) == sum(counted)
        runs = [each for each in worked if each != "busy"]
        assert (tmp_path / f"log-{turn}").read_text() == "begins ends " * len(runs)
        assert len(runs) >= 1
        assert not [path for path in (tmp_path / f"runs-{turn}").rglob("*") if path.is_file()]
    expected = ("ready-", "text-", "made-", "counter-", "log-", "runs-")
    assert all(path.name.startswith(expected) for path in tmp_path.iterdir())


_HOLDS = """
import sys, time
from pathlib import Path
from emsjax.host.files import new_directory, replacing
from emsjax.host.locks import alone, alone_in
where = Path(sys.argv[1])
with (alone(where / "lock"), alone_in(where / "run", "busy"), replacing(where / "text") as text,
      new_directory(where / "made") as made):
    (made / "half").touch()
    (made / "folder").mkdir()
    text.write(b"half" * 99999)
    print("holds", flush=True)
    time.sleep(60)
"""


def test_a_killed_process_leaves_no_lock(tmp_path: Path):
    command = [sys.executable, "-c", _HOLDS, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "holds\n"
        with pytest.raises(UserError, match="busy"), alone_in(tmp_path / "run", "busy"):
            pass
        with pytest.raises(UserError, match=r"^held$"), alone(tmp_path / "lock", "held"):
            pass
        with (
            pytest.raises(UserError, match="another process is writing"),
            new_directory(tmp_path / "made"),
        ):
            pass
        process.send_signal(signal.SIGKILL)
    with alone(tmp_path / "lock", "held"), alone_in(tmp_path / "run", "busy"):
        replace_text(tmp_path / "text", "whole")
        with new_directory(tmp_path / "made") as made:
            (made / "whole").touch()
    assert (tmp_path / "text").read_text() == "whole"
    assert os.listdir(tmp_path / "made") == ["whole"]
    assert sorted(os.listdir(tmp_path)) == ["made", "run", "text"]
    assert not os.listdir(tmp_path / "run")


def test_a_waiting_process_continues_when_the_other_has_ended(tmp_path: Path):
    command = [sys.executable, "-c", _HOLDS.replace("sleep(60)", "sleep(0.5)"), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "holds\n"
        began = time.monotonic()
        with alone(tmp_path / "lock"):
            assert time.monotonic() - began > 0.1
        replace_text(tmp_path / "text", "second")
    assert (tmp_path / "text").read_text() == "second"


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(locks.fcntl, "flock", fail)
    with alone(tmp_path / "lock", "held"), alone_in(tmp_path / "run", "busy"):
        replace_text(tmp_path / "text", "whole")
    with new_directory(tmp_path / "made") as one, new_directory(tmp_path / "other") as other:
        assert one != other
    assert sorted(os.listdir(tmp_path)) == ["made", "other", "text"]


def test_a_platform_without_flock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(locks, "fcntl", None)
    with alone(tmp_path / "lock", "held"):
        with pytest.raises(UserError, match="held"), alone(tmp_path / "lock", "held"):
            pass
        replace_text(tmp_path / "text", "whole")
        with new_directory(tmp_path / "made") as made:
            (made / "whole").touch()
    with alone(tmp_path / "lock", "held"):
        assert (tmp_path / "text").read_text() == "whole"


def test_the_lock_of_a_link_is_that_of_its_target(tmp_path: Path):
    (tmp_path / "link").symlink_to(tmp_path / "page.html")
    assert lock_of(tmp_path / "link") == lock_of(tmp_path / "page.html")


def test_a_directory_that_stays_empty_is_removed_with_its_parents(tmp_path: Path):
    with alone_in(tmp_path / "a" / "b", "busy"):
        assert (tmp_path / "a" / "b").is_dir()
    assert not os.listdir(tmp_path)
    with alone_in(tmp_path / "a" / "b", "busy"):
        (tmp_path / "a" / "b" / "c").touch()
    assert os.listdir(tmp_path / "a" / "b") == ["c"]


def test_a_directory_that_another_process_removes_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """`mkdir` finds the directory, looks again whether it is one, and it is no longer there."""
    directory, mkdir, removed = tmp_path / "run", Path.mkdir, []

    def late(self: Path, **options: Any) -> None:
        if not removed:
            removed.append(self)
            raise FileExistsError(self)
        mkdir(self, **options)

    monkeypatch.setattr(Path, "mkdir", late)
    with alone_in(directory, "busy"):
        assert directory.is_dir()
    assert removed == [directory]


def test_a_partial_directory_that_its_owner_renames_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    mkdir, partial, renamed = os.mkdir, tmp_path / ".made.partial", []

    def late(path: Path, *arguments: Any, **options: Any) -> None:
        if path == partial and not renamed:
            renamed.append(path)
            raise FileExistsError(path)
        mkdir(path, *arguments, **options)

    monkeypatch.setattr(os, "mkdir", late)
    with new_directory(tmp_path / "made") as made:
        (made / "whole").touch()
    assert renamed == [partial]
    assert os.listdir(tmp_path / "made") == ["whole"]


def test_a_file_in_place_of_a_partial_directory(tmp_path: Path):
    (tmp_path / ".made.partial").touch()
    with pytest.raises(UserError, match="Not a directory"), new_directory(tmp_path / "made"):
        pass
    assert os.listdir(tmp_path) == [".made.partial"]


def test_a_file_in_place_of_the_directory(tmp_path: Path):
    (tmp_path / "run").touch()
    with pytest.raises(FileExistsError), alone_in(tmp_path / "run", "busy"):
        pass
