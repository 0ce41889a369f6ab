"""Two runs never write to one file: the second is refused, and no result is lost."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from emsjax.errors import UserError
from emsjax.generate.result_file import open_output
from emsjax.requests import jsonl
from tests.together import in_processes

HERE = Path(__file__).parent
PROMPTS = 60
REFUSED = re.compile(r"error: (another process is writing to|'.*' already holds results)")
ROUNDS = [5, pytest.param(50, marks=pytest.mark.slow)]


def both(rounds, tmp_path, options):
    """Two runs in each round; every one is refused in a sentence or finds all its results."""
    lines = "".join(json.dumps({"id": n, "prompt": f"p{n}"}) + "\n" for n in range(PROMPTS))
    (tmp_path / "in.jsonl").write_text(lines)
    options = f"--input {tmp_path}/in.jsonl {options}".strip()
    file = f"{tmp_path}/out-{{}}.jsonl"
    turns = in_processes(HERE / "two_runs.py", rounds, tmp_path, OPTIONS=options, FILE=file)
    for turn, answers in enumerate(turns):
        assert 0 in [status for status, _ in answers], answers
        for status, said in answers:
            assert status == 0 or (status == 2 and REFUSED.match(said)), said
        records = [json.loads(line) for line in Path(file.format(turn)).read_text().splitlines()]
        assert sorted(record["id"] for record in records) == list(range(PROMPTS))
        assert all("text" in record for record in records)
    return turns


@pytest.mark.parametrize("rounds", ROUNDS)
def test_two_runs_on_one_new_output(rounds, tmp_path):
    turns = both(rounds, tmp_path, "")
    assert all(sorted(status for status, _ in answers) == [0, 2] for answers in turns)
    names = {path.name for path in tmp_path.iterdir() if not path.name.startswith("ready-")}
    assert names == {"in.jsonl", *(f"out-{turn}.jsonl" for turn in range(rounds))}


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("option", ["--resume", "--overwrite"])
def test_two_runs_that_continue_or_replace_one_output(rounds, option, tmp_path):
    for turn in range(rounds):
        old = jsonl.encode({"id": 3, "line": 4, "error": "line 4: no."})
        (tmp_path / f"out-{turn}.jsonl").write_bytes(old)
    both(rounds, tmp_path, option)


def paused(*arguments):
    """Starts a run, which waits before its third result."""
    process = subprocess.Popen(
        [sys.executable, str(HERE / "fake_llm.py"), *map(str, arguments)],
        env=os.environ | {"PAUSE_AT": "2"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert "waiting\n" in iter(process.stderr.readline, "")
    return process


def end(process, number):
    process.send_signal(number)
    process.communicate(timeout=60)


@pytest.mark.parametrize("option", [[], ["--resume"], ["--overwrite"]])
def test_a_running_writer_is_left_alone(call, option, tmp_path):
    path = tmp_path / "out.jsonl"
    prompts = [f"--prompt=p{n}" for n in range(4)]
    process = paused(*prompts, "--output", path)
    try:
        linked = tmp_path / "linked.jsonl"
        linked.hardlink_to(path)
        for name in (path, linked):
            called = call(*prompts, "--output", name, *option)
            assert called.status == 2
            assert called.err == (
                f"error: another process is writing to '{name}'; wait for it, or give another "
                "--output.\n"
            )
        assert len(path.read_bytes().splitlines()) == 2
    finally:
        end(process, signal.SIGINT)
    assert call(*prompts, "--output", path, "--resume").status == 0
    assert len(path.read_bytes().splitlines()) == 4


def test_a_killed_run_leaves_no_lock(call, tmp_path):
    path, page = tmp_path / "out.jsonl", tmp_path / "page.html"
    prompts = [f"--prompt=p{n}" for n in range(4)]
    end(paused(*prompts, "--output", path, "--report", page), signal.SIGKILL)
    assert call(*prompts, "--output", path, "--resume", "--report", page).status == 0
    assert len(path.read_bytes().splitlines()) == 4
    assert sorted(os.listdir(tmp_path)) == ["out.jsonl", "page.html"]


def test_a_second_run_with_the_same_report_is_refused_before_it_starts(call, llm, tmp_path):
    page, other = tmp_path / "page.html", tmp_path / "other.jsonl"
    prompts = [f"--prompt=p{n}" for n in range(4)]
    process = paused(*prompts, "--output", tmp_path / "out.jsonl", "--report", page)
    try:
        called = call(*prompts, "--output", other, "--report", page)
        assert called.status == 2
        assert called.err.startswith(f"error: another process is writing the report '{page}'")
        assert not llm.loads
        assert not other.exists()
    finally:
        end(process, signal.SIGINT)
    assert page.read_text().endswith("</html>")


def test_resuming_keeps_the_lock_while_it_replaces_the_file(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_bytes(jsonl.encode({"id": 1, "line": 1, "error": "line 1: no."}))
    with open_output(str(path), resume=True) as file:
        with pytest.raises(UserError, match="another process is writing to"):
            open_output(str(path), resume=True)
        file.write(b"{}\n")
    assert path.read_bytes() == b"{}\n"


def test_two_runs_may_share_a_special_file(tmp_path):
    with open_output("/dev/null"), open_output("/dev/null") as other:
        other.write(b"1\n")
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    pipe = str(tmp_path / "pipe")
    with open_output(pipe) as one, open_output(pipe) as other:
        one.write(b"1\n")
        other.write(b"2\n")
    assert os.read(reader, 9) == b"1\n2\n"
    os.close(reader)
