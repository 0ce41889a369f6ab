"""Runs the same Python function in several processes at once, many times."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PATIENCE_S = 60.0


def in_processes(
    script: Path, rounds: int, directory: Path, count: int = 2, **variables: str
) -> list[list[Any]]:
    """Runs a script that calls `take_turns` in several processes.

    Args:
      script: the file to run, with the number of the process, the number of processes, the number
        of rounds and `directory` as arguments.
      rounds: how often all processes meet.
      directory: where they meet.
      count: the number of processes.
      variables: additional environment variables.

    Returns:
      For each round, the result in every process.
    """
    root = Path(__file__).parents[1]
    paths = os.pathsep.join(map(str, (root, script.parent, root / "tests" / "loading")))
    environment = os.environ | {"PYTHONPATH": paths} | variables
    commands = [
        [sys.executable, str(script), str(number), str(count), str(rounds), str(directory)]
        for number in range(count)
    ]
    started = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        for command in commands
    ]
    try:
        ended = [process.communicate(timeout=PATIENCE_S + 2 * rounds) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * count, ended
    answers = [[json.loads(line) for line in out.splitlines()] for out, _ in ended]
    return [list(each) for each in zip(*answers, strict=True)]


def take_turns(act: Callable[[int], Any], arguments: Sequence[str] | None = None) -> None:
    """Calls `act` with the number of each round, when all processes have come to it.

    Prints each result as a line of JSON to standard output, which `act` must not use.
    """
    number, count, rounds, directory = (arguments or sys.argv[1:])[:4]
    meeting = Path(directory)
    for turn in range(int(rounds)):
        (meeting / f"ready-{turn}-{number}").touch()
        ends = time.monotonic() + PATIENCE_S
        while any(not (meeting / f"ready-{turn}-{n}").exists() for n in range(int(count))):
            assert time.monotonic() < ends, "another process does not come"
        print(json.dumps(act(turn)), flush=True)
