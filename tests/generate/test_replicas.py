"""`--data-parallel`: the same results as one process, whatever dies on the way."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tests.generate.commands import Commands, ended

FAKE = Path(__file__).with_name("fake_llm.py")
PROMPTS = 60
GONE_S = 20


def start(*arguments, replicas=2, **variables):
    given = map(str, (*arguments, f"--data-parallel={replicas}"))
    return subprocess.Popen(
        [sys.executable, str(FAKE), *given],
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | {k: str(v) for k, v in variables.items()},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments, **settings):
    process = start(*arguments, **settings)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.fixture
def file(tmp_path):
    """Returns a file of prompts: most are good, some do not fit the model, one is no prompt."""
    lines = [{"id": n, "prompt": f"p{n}"} for n in range(PROMPTS)]
    lines += [{"id": "long", "prompt": "x" * 99}, {"id": "bad", "prompt": 3}]
    random.Random(0).shuffle(lines)
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def records(path):
    return sorted(path.read_text().splitlines())


@pytest.fixture
def expected(file, call, tmp_path):
    """Returns what one process writes."""
    one = tmp_path / "one.jsonl"
    assert call("--input", file, "--output", one).status == 1  # there are bad lines
    return records(one)


def replicas_of(process, count=2):
    """Waits until a command has its replicas, and returns them."""
    while len(found := psutil.Process(process.pid).children()) < count:
        assert process.poll() is None
    return found


def until_waiting(process):
    """Reads until a replica waits for a signal, see `fake_llm.py`."""
    assert "waiting\n" in iter(process.stderr.readline, "")


def test_the_same_records_as_one_process(file, expected, tmp_path):
    status, out, err = run("--input", file, "--output", tmp_path / "two.jsonl")
    assert (status, out) == (1, "")
    assert records(tmp_path / "two.jsonl") == expected
    assert f"{PROMPTS} prompts, " in err
    assert "by fake in 2 processes\n2 bad lines: see the error records in the output\n" in err
    assert "1: 50%  2: 0%" in err, "statistics of all replicas together"


def test_a_dying_replica_loses_nothing(file, expected, tmp_path):
    path = tmp_path / "two.jsonl"
    status, _, err = run("--input", file, "--output", path, DIE_AT=5, DIE_ONCE=tmp_path / "once")
    assert status == 1
    assert records(path) == expected
    line = next(line for line in err.splitlines() if "SIGKILL" in line)
    number, count = line.split()[1], line.split()[-3]
    assert number in "12"
    assert line == (
        f"replica {number} of 2 was killed by SIGKILL (memory may have run out); the others "
        f"do its {count} unfinished prompts"
    )
    assert 0 < int(count) <= 16
    assert "1 replica ended early: see above; no prompt was lost" in err


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("RuntimeError", "ended with status 1 (RuntimeError: no); the others "),
        ("UserError", "stopped: no; the others "),
    ],
)
def test_a_failing_replica_loses_nothing(file, expected, how, why, tmp_path):
    path, once = tmp_path / "two.jsonl", tmp_path / "once"
    status, _, err = run("--input", file, "--output", path, DIE_AT=5, DIE_ONCE=once, DIE_HOW=how)
    assert status == 1
    assert records(path) == expected
    assert f" of 2 {why}" in err
    assert ("Traceback" in err) == (how == "RuntimeError")


@pytest.mark.parametrize("how", [pytest.param("device", marks=pytest.mark.slow), "stop"])
def test_a_replica_that_hangs_loses_nothing(file, expected, how, tmp_path):
    """Its device ends no call any more, or nothing of it runs."""
    path, once = tmp_path / "two.jsonl", tmp_path / "once"
    status, _, err = run(
        *("--input", file, "--output", path),
        **{"DIE_AT": 5, "DIE_ONCE": once, "DIE_HOW": how, "EMSJAX_TIMEOUT_S": 4},
    )
    assert status == 1
    assert records(path) == expected
    assert " of 2 has not answered for 4 s; the others do its " in err


def test_a_timeout_that_is_no_number_is_refused(file):
    status, _, err = run("--input", file, EMSJAX_TIMEOUT_S="soon")
    assert status == 2
    assert err.endswith(
        "error: EMSJAX_TIMEOUT_S=soon is no number of seconds; give one, such as 300.\n"
    )


def test_without_any_replica_the_run_ends_and_can_be_continued(file, expected, tmp_path):
    path = tmp_path / "two.jsonl"
    status, _, err = run("--input", file, "--output", path, DIE_AT=5)
    assert status == 2
    *_, line = err.splitlines()
    assert line.startswith("error: replica ")
    assert line.endswith(
        "of 2 was killed by SIGKILL (memory may have run out), and no other is left; what is "
        "written is whole, and the same command with --resume continues it."
    )
    before = records(path)
    assert 0 < len(before) < len(expected)
    assert set(before) < set(expected)
    assert run("--input", file, "--output", path, "--resume", replicas=3)[0] == 1
    assert records(path) == expected


def test_killing_the_command_leaves_no_replica(file, expected, tmp_path):
    path = tmp_path / "two.jsonl"
    process = start("--input", file, "--output", path, PAUSE_AT=7)
    replicas = replicas_of(process)
    until_waiting(process)
    process.kill()
    process.communicate(timeout=60)
    assert psutil.wait_procs(replicas, timeout=GONE_S)[1] == []
    assert run("--input", file, "--output", path, "--resume")[0] == 1
    assert records(path) == expected


def test_killing_the_command_while_replicas_start_leaves_none(file):
    process = start("--input", file)
    replicas = replicas_of(process)
    process.kill()
    process.communicate(timeout=60)
    assert psutil.wait_procs(replicas, timeout=GONE_S)[1] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_all_processes(file, number, tmp_path):
    path = tmp_path / "two.jsonl"
    process = start("--input", file, "--output", path, PAUSE_AT=7)
    replicas = replicas_of(process)
    until_waiting(process)
    while not path.stat().st_size:  # what a replica has done may still be on its way
        time.sleep(0.001)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err
    assert err.endswith(
        f"interrupted: finished results are in '{path}'; "
        "repeat the command with --resume to go on.\n"
    )
    assert [json.loads(line) for line in path.read_text().splitlines()]
    assert psutil.wait_procs(replicas, timeout=GONE_S)[1] == []


def test_a_model_that_cannot_be_loaded_is_one_error(file):
    status, out, err = run("--input", file, "--model", "missing", replicas=3)
    assert (status, out) == (2, "")
    assert err == (
        "loading missing\nerror: the model 'missing' is not there; give --model a directory.\n"
    )


def test_more_replicas_than_devices_is_an_error_before_the_first_prompt(file):
    options = {"replicas": 3, "JAX_PLATFORMS": "", "CUDA_VISIBLE_DEVICES": "5,6,8", "ABSENT": "8"}
    status, out, err = run("--input", file, **options)
    assert (status, out) == (2, "")
    assert err == (
        "error: --data-parallel 3 needs 3 devices, but replica 3 found a cpu where the first one "
        "found a gpu; give as many as there are devices.\n"
    )


def test_replicas_whose_models_are_shared_need_more_devices(file):
    options = {"JAX_PLATFORMS": "", "CUDA_VISIBLE_DEVICES": "5,6,8"}
    status, out, err = run("--input", file, "--tensor-parallel=2", **options)
    assert (status, out) == (2, "")
    assert "--data-parallel 2 needs 4 devices, but CUDA_VISIBLE_DEVICES=5,6,8 names 3;" in err


def test_texts_come_in_order():
    prompts = [f"--prompt=p{n}" for n in range(9)]
    status, out, _ = run(*prompts)
    assert status == 0
    assert [line for line in out.splitlines() if line[-1:] == "p"] == [f"{n}p" for n in range(9)]


def test_a_lost_replica_is_in_the_status_of_a_run_without_bad_lines(tmp_path):
    prompts = [f"--prompt=p{n}" for n in range(9)]
    status, out, err = run(*prompts, DIE_AT=2, DIE_ONCE=tmp_path / "once")
    assert status == 1, err
    assert [line for line in out.splitlines() if line[-1:] == "p"] == [f"{n}p" for n in range(9)]
    assert "1 replica ended early" in err


def test_a_text_that_does_not_fit_ends_the_run():
    status, _, err = run("--prompt=a", f"--prompt={'x' * 99}")
    assert status == 2
    assert err.endswith("error: prompt 2: the prompt has 99 tokens, the model 64.\n")


def test_a_report_shows_all_requests(file, tmp_path):
    page = tmp_path / "page.html"
    run("--input", file, "--report", page)
    assert f"{PROMPTS} requests" in page.read_text()


def test_a_live_pipe_is_answered_line_by_line():
    process = start("--input", "-")
    for number in (1, 2):
        process.stdin.write(f'{{"prompt": "p{number}"}}\n')
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["text"] == f"{number}p"
    process.communicate(timeout=60)
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--data-parallel=0"], "--data-parallel 0 is too small; give 1 or more."),
        (["--data-parallel=257"], "--data-parallel 257 is too large; give as many as there are "),
        (
            ["--data-parallel=2", "--distributed"],
            "--data-parallel starts copies of the model on one host, and several hosts share one ",
        ),
        (["--data-parallel=2", "--stream"], "--stream shows texts while one process generates "),
        (
            ["--data-parallel=2", "--tensor-parallel=auto"],
            "--tensor-parallel auto takes all devices that the model needs, and --data-parallel ",
        ),
    ],
)
def test_wrong_options_are_refused(call, llm, arguments, error):
    called = call("--prompt=a", *arguments)
    assert called.status == 2
    assert called.err.startswith(f"error: {error}")
    assert not llm.loads


# `EMSJAX_TEST_ROUNDS=20` kills the command and replicas 20 times each, at least; `EMSJAX_TEST_SEED`
# chooses other moments.
ROUNDS, JOB = int(os.environ.get("EMSJAX_TEST_ROUNDS", "6")), 200
SEED = os.environ.get("EMSJAX_TEST_SEED", "26")


def kill_some(process, chance, out):
    """Kills up to two processes of a command at random moments; returns all, and what died."""
    written = out.stat().st_size if out.exists() else 0
    every = [psutil.Process(process.pid), *replicas_of(process)]
    victims = chance.sample(every, 2)
    killed = []
    for victim in victims:
        # Now, while it starts, or when it has written something more.
        written += chance.choice((0, chance.randrange(1, 30_000)))
        while process.poll() is None and (out.stat().st_size if out.exists() else 0) < written:
            time.sleep(0.001)
        if process.poll() is None and victim.is_running():
            victim.kill()
            killed.append("replica" if victim.pid != process.pid else "command")
    return every, killed


@pytest.mark.slow
def test_any_process_may_be_killed_at_any_moment(tmp_path):
    """A real command on a tiny model: kills over jobs of 200 prompts, each continued."""
    commands, cache, chance = Commands(tmp_path), tmp_path / "cache", random.Random(SEED)
    lines = [
        {"id": n, "prompt_token_ids": [3 + n % 60, 4], "temperature": n % 2} for n in range(JOB)
    ]
    commands.input.write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = ["--max-tokens=24", "--ignore-eos"]
    one, out, kills = tmp_path / "one.jsonl", tmp_path / "two.jsonl", Counter()
    ((status, said),) = ended([commands.start(cache, "--output", one, *given)])
    assert status == 0, said
    expected = results(one)
    given += ["--output", out, "--data-parallel=2", "--resume"]
    while min(kills["command"], kills["replica"]) < ROUNDS:
        process = commands.start(cache, *given)
        every, killed = kill_some(process, chance, out)
        kills.update(killed)
        ((status, said),) = ended([process])
        assert status in (0, -9) or "was killed by SIGKILL" in said, said
        assert psutil.wait_procs(every, timeout=GONE_S)[1] == []
        if status in (0, 1):  # nothing is left to do
            assert results(out) == expected
            out.unlink()
    ((status, said),) = ended([commands.start(cache, *given)])
    assert status == 0, said
    assert results(out) == expected


def results(path):
    """Returns what does not depend on time, by id; fails if an id is there twice."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    found = {line["id"]: (line["token_ids"], line["finish_reason"]) for line in lines}
    assert len(found) == len(lines) == JOB
    return found
