"""The notebooks in `colab/`: text and .ipynb agree, without outputs, with one shared setup."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jupytext
import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
TEXTS = sorted((ROOT / "colab").glob("*.py"))
NAMES = {"quickstart", "your_model", "paper", "train_a_draft", "kernels"}
# A longer cell is a program rather than something to read and change.
MOST_LINES = 45
CELLS_TO_OWN_PROMPTS = 5


def code_cells(text: Path) -> list[str]:
    return [cell.source for cell in jupytext.read(text).cells if cell.cell_type == "code"]


def setup_of(text: Path) -> str:
    return code_cells(text)[0]


def test_there_is_a_text_and_an_ipynb_for_every_notebook():
    assert {text.stem for text in TEXTS} == NAMES
    assert {file.stem for file in (ROOT / "colab").glob("*.ipynb")} == NAMES


def test_each_ipynb_matches_its_text():
    command = [sys.executable, str(ROOT / "scripts" / "notebooks.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text.stem)
class TestEachNotebook:
    def test_stores_no_outputs(self, text):
        for cell in json.loads(text.with_suffix(".ipynb").read_text())["cells"]:
            assert not cell.get("outputs")
            assert cell.get("execution_count") is None

    def test_contains_no_path_of_one_machine(self, text):
        places = re.findall(r"/(?:home|root|work|tmp|Users)/\S*", text.read_text())
        assert places == []

    def test_cells_are_code_and_short(self, text):
        for source in code_cells(text):
            ast.parse(source)
            assert len(source.splitlines()) <= MOST_LINES, source

    def test_begins_with_the_shared_setup(self, text):
        assert setup_of(text) == setup_of(TEXTS[0])

    def test_begins_with_a_title_and_mentions_the_wheel(self, text):
        first = jupytext.read(text).cells[0]
        assert first.cell_type == "markdown"
        assert first.source.startswith("# emsjax: ")
        assert "wheel" in first.source

    def test_mounts_drive_on_colab_only(self, text):
        for source in code_cells(text):
            if "drive.mount" in source:
                assert 'if "google.colab" in sys.modules:' in source


def test_own_prompts_come_within_five_cells():
    cells = code_cells(ROOT / "colab" / "quickstart.py")
    first = next(n for n, source in enumerate(cells, start=1) if "PROMPTS = [" in source)
    assert first <= CELLS_TO_OWN_PROMPTS


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_the_tpu_compiler_is_asked_where_it_is_installed(platform):
    (cell,) = (c for c in code_cells(ROOT / "colab" / "your_model.py") if "PLAN = " in c)
    settings = {"MODEL": "opt-125m", "BATCH_SIZE": 4, "MAX_MODEL_LEN": 512, "OPTIONS": ""}
    called = []
    exec(cell, settings | {"PLATFORM": platform, "SMALL": False, "run": called.append})
    assert ["--no-compile" in command for command in called] == [platform != "tpu"]


def test_pins_are_versions_that_the_package_accepts():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    accepted = {r.name: r.specifier for r in map(Requirement, project["dependencies"])}
    (pins,) = re.findall(r'^PINS = "(.*)"  #', setup_of(TEXTS[0]), re.MULTILINE)
    for pin in map(Requirement, pins.split()):
        (exact,) = pin.specifier
        assert exact.operator == "=="
        assert accepted[pin.name].contains(exact.version)
