"""Processes that measure the same steps lose none of their measurements."""

import json
from pathlib import Path

import pytest

from tests.together import in_processes

SCRIPT = Path(__file__).with_name("two_measurers.py")
ROUNDS = [5, pytest.param(50, marks=pytest.mark.slow)]


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("settles", ["no", "yes"])
def test_two_processes_measure_the_same_steps(rounds: int, settles: str, tmp_path: Path):
    cache = tmp_path / "cache"
    turns = in_processes(SCRIPT, rounds, tmp_path, EMSJAX_CACHE=str(cache), SETTLES=settles)
    tables = [json.loads(file.read_text()) for file in (cache / "step-costs").iterdir()]
    assert len(tables) == rounds
    expected = 2 if settles == "no" else 1
    assert [table["looks"] for table in tables] == [expected] * rounds
    for answers in turns:
        assert sum(measured for measured, _, _ in answers) == expected
        assert max(looks for _, looks, _ in answers) == expected
