"""The code on the pages runs: in order, page by page, each in an empty directory.

Most pages find a tiny stand-in for the default model, so that they run quickly.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from sybil import Document, Example
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]
# Pages that run for a few seconds; `add-a-model-family` needs PyTorch.
QUICK = ("add-a-drafter", "add-a-kernel-backend", "add-a-model-family", "exactness", "how-it-works")
# Pages that need the real default model: its draft, or what a user runs first.
WITH_THE_MODEL = ("README", "python", "drafters")
# Blocks that are not run: instructions to Sphinx, data, commands of a server, which does not end,
# and, as `py`, code that needs Ray, which is too large for the tests' environment.
SHOWN = {"{toctree}", "{eval-rst}", "text", "json", "py"}


def run_shell(example: Example) -> None:
    """Runs a block as typed, with the `python` that has emsjax."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", str(example.parsed)],
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"line {example.line}: {done.stderr}"


PARSERS = PythonCodeBlockParser(), CodeBlockParser("sh", run_shell)


def examples(page: Path) -> list[Example]:
    """Returns the code of a page, except for lines that set up an environment (see `.ci/run`)."""
    found = Document.parse(str(page), *PARSERS)
    return [example for example in found if "-m venv" not in str(example.parsed)]


WITH_CODE = [page for page in PAGES if examples(page)]


def run(page: Path) -> None:
    for example in examples(page):
        example.evaluate()


def test_there_are_pages_with_code():
    assert {page.stem for page in WITH_CODE} > {*QUICK, "README", "python", "command-line"}


def marked(page: Path) -> Any:
    marks = () if page.stem in QUICK else pytest.mark.slow
    return pytest.param(page, id=page.stem, marks=marks)


@pytest.mark.parametrize("page", [marked(page) for page in WITH_CODE])
def test_pages_run(page: Path, stand_in: Path, monkeypatch: pytest.MonkeyPatch):
    if page.stem == "add-a-model-family":
        pytest.importorskip("torch")
    if page.stem not in WITH_THE_MODEL:
        monkeypatch.setenv("EMSJAX_CACHE", str(stand_in))
    run(page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_is_run(page: Path):
    blocks = [token for token in MarkdownIt().parse(page.read_text()) if token.type == "fence"]
    code = [b for b in blocks if b.info not in SHOWN and "-m venv" not in b.content]
    assert {block.info for block in code} <= {"python", "sh"}
    run = {example.line for example in examples(page)}
    for block in code:
        assert block.map is not None
        fence = block.map[0] + 1
        # A Python session begins at its first prompt, on the line after the fence.
        assert run & {fence, fence + 1}, f"line {fence} is not run"
