"""Tests that need a separate process: signals, closed pipes, imports."""

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

FAKE = Path(__file__).with_name("fake_llm.py")
PROMPTS = [f"--prompt=p{i}" for i in range(6)]


def _start(*arguments, pause_at=None, **options):
    environment = os.environ | ({} if pause_at is None else {"PAUSE_AT": str(pause_at)})
    return subprocess.Popen(
        [sys.executable, str(FAKE), *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def _interrupt(process, number):
    """Sends a signal once the fake `LLM` waits for one; returns exit status and output."""
    for line in process.stderr:
        if line == "waiting\n":
            break
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_whole_lines_and_says_how_to_resume(tmp_path, number):
    path = tmp_path / "out.jsonl"
    status, out, err = _interrupt(_start(*PROMPTS, "--output", path, pause_at=3), number)
    assert (status, out) == (130, "")
    assert "Traceback" not in err
    assert "3 prompts, 6 tokens" in err
    assert err.endswith(
        f"interrupted: finished results are in '{path}'; "
        "repeat the command with --resume to go on.\n"
    )
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 3
    resumed = _start(*PROMPTS, "--output", path, "--resume")
    resumed.communicate(timeout=60)
    assert resumed.returncode == 0
    ids = [json.loads(line)["id"] for line in path.read_text().splitlines()]
    assert sorted(ids) == [1, 2, 3, 4, 5, 6]


def test_an_interrupt_of_an_overwriting_run_does_not_suggest_overwriting_again(tmp_path):
    path = tmp_path / "out.jsonl"
    process = _start(*PROMPTS, "--output", path, "--overwrite", pause_at=1)
    _, _, err = _interrupt(process, signal.SIGINT)
    assert "repeat the command with --resume instead of --overwrite to go on" in err


def test_an_interrupt_before_the_first_result_leaves_no_file(tmp_path):
    path = tmp_path / "out.jsonl"
    status, _, err = _interrupt(_start(*PROMPTS, "--output", path, pause_at=0), signal.SIGINT)
    assert status == 130
    assert err.endswith("interrupted: no result was finished.\n")
    assert not path.exists()


def test_an_interrupt_prints_the_finished_texts():
    status, out, err = _interrupt(_start(*PROMPTS, pause_at=3), signal.SIGINT)
    assert status == 130
    assert err.endswith("interrupted\n")
    sections = [section.splitlines() for section in out.split("\n\n")]
    numbers = [int(header.split()[2]) for header, _ in sections]
    assert len(numbers) == 3, "all finished texts are printed, without waiting for earlier ones"
    assert numbers == sorted(numbers) != [1, 2, 3]
    assert [text for _, text in sections] == [f"{n - 1}p" for n in numbers]


@pytest.mark.parametrize("arguments", [[], ["--output", "-"]])
def test_a_closed_pipe_ends_quietly(arguments):
    process = _start(*PROMPTS, *arguments)
    process.stdout.close()
    err = process.stderr.read()
    assert (process.wait(timeout=60), err) == (141, "")
    process.stderr.close()


@pytest.mark.parametrize("arguments", [[], ["--input", "-"], ["--input", "/dev/stdin"]])
def test_a_live_pipe_answers_each_line_before_the_next_is_written(arguments):
    process = _start(*arguments, stdin=subprocess.PIPE)
    for number in (1, 2, 3):
        process.stdin.write(f'{{"prompt": "p{number}"}}\n')
        process.stdin.flush()
        assert _answer(process)["text"] == f"{number}p"
    process.stdin.write('{"prompt": 3}\n')
    process.stdin.flush()
    assert "error" in _answer(process), "a bad line gets its error record at once"
    assert process.communicate(timeout=60)[0] == ""
    assert process.returncode == 1


def _answer(process):
    ready, _, _ = select.select([process.stdout], [], [], 20)
    if not ready:
        process.kill()
        pytest.fail("no answer to a line while the pipe stays open")
    return json.loads(process.stdout.readline())


@pytest.mark.parametrize("arguments", [[], ["--input", "-"], ["--input", "/dev/stdin"]])
def test_an_interrupt_while_a_pipe_is_silent_ends_at_once(arguments):
    process = _start(*arguments, stdin=subprocess.PIPE)
    process.stdin.write('{"prompt": "ab"}\n')
    process.stdin.flush()
    assert _answer(process)["text"] == "ba"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130
    err = process.stderr.read()
    assert err.endswith("interrupted\n")
    assert "Traceback" not in err
    assert "Fatal" not in err
    for stream in (process.stdin, process.stdout, process.stderr):
        stream.close()


def test_a_long_pipe_loses_no_line(tmp_path):
    lines = "".join(f'{{"prompt": "{number}"}}\n' for number in range(1000))
    out, _ = _start("--input", "-", stdin=subprocess.PIPE).communicate(lines, timeout=60)
    texts = [json.loads(line)["text"] for line in out.splitlines()]
    assert sorted(texts) == sorted(str(number)[::-1] for number in range(1000))


def test_usage_needs_neither_jax_nor_transformers():
    script = (
        "import sys\n"
        "from emsjax.generate.__main__ import main\n"
        "for arguments in (['--help'], ['--prompt=a', '--resume'], ['--frobnicate']):\n"
        "    main(arguments)\n"
        "heavy = {'jax', 'transformers', 'flax', 'numpy', 'torch'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_module_runs_as_documented():
    done = subprocess.run(
        [sys.executable, "-m", "emsjax.generate", "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert "python -m emsjax.generate [OPTIONS]" in done.stdout
    assert done.stderr == ""
