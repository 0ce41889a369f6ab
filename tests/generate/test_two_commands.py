"""Two real commands on one output, one page and one cache, and one of them killed.

`EMSJAX_TEST_ROUNDS=50 scripts/test -m slow tests/generate/test_two_commands.py` meets 50 times in
each test. The tests next to it meet oftener, but with a fake model.
"""

import json
import os
import random
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from emsjax.loading.default_model import DEFAULT_NAME
from emsjax.loading.load import load_model
from tests.generate.commands import PROMPTS, Commands, ended

pytestmark = pytest.mark.slow
ROUNDS = range(int(os.environ.get("EMSJAX_TEST_ROUNDS", "2")))
OLD = '{"id": 3, "line": 4, "error": "line 4: no."}\n'
REFUSED = re.compile(r"error: (another process is writing to|'.*' already holds results)")


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Commands:
    return Commands(tmp_path_factory.mktemp("commands"))


@pytest.fixture(scope="module")
def cache(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a cache that a first run has filled."""
    directory = tmp_path_factory.mktemp("filled")
    ((status, said),) = ended([commands.start(directory, "--output", directory / "out")])
    assert status == 0, said
    return directory


def check_results(file: Path) -> None:
    """Fails unless a file holds the result of every prompt, once and whole."""
    text = file.read_text()
    assert text.endswith("\n")
    records = [json.loads(line) for line in text.splitlines()]
    assert sorted(record["id"] for record in records) == list(range(PROMPTS))
    assert all(len(record["token_ids"]) == 1 for record in records)


def check_cache(cache: Path) -> None:
    """Fails unless a cache holds a whole model and a whole table of costs, and nothing else."""
    names = {path.name for path in cache.iterdir()} - {f".{DEFAULT_NAME}.looked"}
    assert names == {DEFAULT_NAME, "step-costs"}
    assert load_model(cache / DEFAULT_NAME).name == f"{DEFAULT_NAME}.Q4_1"
    (table,) = (cache / "step-costs").iterdir()
    found = json.loads(table.read_text())
    assert found["settled"] or found["looks"] >= 1
    assert all(cost is None or cost > 0 for cost in found["rungs"])


@pytest.mark.parametrize("number", ROUNDS)
def test_one_output(commands: Commands, cache: Path, number: int, tmp_path: Path) -> None:
    option = ["", "--resume", "--overwrite"][number % 3]
    out = tmp_path / "out.jsonl"
    if option:
        out.write_text(OLD)
    given = ["--output", out, *filter(None, [option])]
    both = ended([commands.start(cache, *given) for _ in "12"])
    # A run that continues or replaces may begin when the other has ended; a new one may not.
    expected = ([0, 2],) if not option else ([0, 2], [0, 0])
    assert sorted(status for status, _ in both) in expected, both
    for status, said in both:
        assert status == 0 or (status == 2 and REFUSED.match(said)), said
    check_results(out)
    assert os.listdir(tmp_path) == ["out.jsonl"]


@pytest.mark.parametrize("number", ROUNDS)
def test_one_page(commands: Commands, cache: Path, number: int, tmp_path: Path) -> None:
    page, outputs = tmp_path / "page.html", [tmp_path / "1.jsonl", tmp_path / "2.jsonl"]
    if number % 2:
        page.write_text("old")
    both = ended([commands.start(cache, "--output", out, "--report", page) for out in outputs])
    assert sorted(status for status, _ in both) == [0, 2], both
    for (status, said), out in zip(both, outputs, strict=True):
        if status == 0:
            check_results(out)
        else:
            assert said.startswith(f"error: another process is writing the report '{page}'")
            assert not out.exists()
    text = page.read_text()
    assert text.startswith("<!")
    assert text.endswith("</html>")
    assert len(os.listdir(tmp_path)) == 2


@pytest.mark.parametrize("number", ROUNDS)
def test_one_cache(commands: Commands, number: int, tmp_path: Path) -> None:
    """Two first runs convert the same model, and measure the same steps."""
    del number
    cache, outputs = tmp_path / "cache", [tmp_path / "1.jsonl", tmp_path / "2.jsonl"]
    both = ended([commands.start(cache, "--output", out) for out in outputs])
    assert [status for status, _ in both] == [0, 0], both
    said = "".join(text for _, text in both)
    assert said.count("converting them once") == 1, said
    assert said.count("dequantised, from the cache") == 1, said
    for out in outputs:
        check_results(out)
    check_cache(cache)


PHASES: dict[str, Callable[[Path, Path], bool]] = {
    "converting": lambda cache, _: any(cache.glob(f".{DEFAULT_NAME}*")),
    "measuring": lambda cache, _: any(cache.glob("step-costs/.*.lock")),
    "writing": lambda _, out: out.exists() and out.stat().st_size > 0,
    "at any time": lambda *_: False,
}


@pytest.mark.parametrize("number", ROUNDS)
def test_one_is_killed(commands: Commands, number: int, tmp_path: Path) -> None:
    """One of two runs is killed; the other is refused, and a third one continues."""
    cache, out, page = tmp_path / "cache", tmp_path / "out.jsonl", tmp_path / "page.html"
    given = ["--output", out, "--report", page, "--resume"]
    phase = list(PHASES)[number % len(PHASES)]
    both = [commands.start(cache, *given) for _ in "12"]
    while all(process.poll() is None for process in both):
        time.sleep(0.001)
    running = [process for process in both if process.poll() is None]
    latest = time.monotonic() + (random.Random(number).uniform(0, 5) if phase[:2] == "at" else 60)
    while running and running[0].poll() is None and time.monotonic() < latest:
        if PHASES[phase](cache, out):
            break
    for process in running:
        process.kill()
    answers = ended(both)
    assert phase == "at any time" or -9 in [status for status, _ in answers], answers
    assert [status for status, _ in answers if status not in (-9, 0)] == [2], answers
    ((status, said),) = ended([commands.start(cache, *given)])
    assert status == 0, said
    check_results(out)
    assert page.read_text().endswith("</html>")
    check_cache(cache)
    assert sorted(os.listdir(tmp_path)) == ["cache", "out.jsonl", "page.html"]
