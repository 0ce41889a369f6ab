"""Runs every notebook from top to bottom with small settings, in a fresh kernel and folder."""

import base64
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[2] / "colab"
SECONDS_A_CELL = 300
PNG = b"\x89PNG\r\n"
# The number of figures and of pages that each notebook shows.
SHOWN = {
    "quickstart": (1, 1),
    "your_model": (2, 1),
    "paper": (4, 0),
    "train_a_draft": (2, 1),
    "kernels": (4, 0),
}


@pytest.fixture
def clean_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns an empty folder to run in, with the environment for notebooks."""
    monkeypatch.setenv("EMSJAX_NOTEBOOK_TEST", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def outputs(notebook: Any) -> list[Any]:
    return [each for cell in notebook.cells for each in cell.get("outputs", [])]


def of_kind(notebook: Any, kind: str) -> list[str]:
    return [each.data[kind] for each in outputs(notebook) if kind in each.get("data", {})]


@pytest.mark.parametrize("name", SHOWN)
# The warnings come from the Jupyter client and its event loop.
@pytest.mark.filterwarnings("default")
def test_runs_without_error_and_shows_its_figures(name, clean_place):
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    where = {"metadata": {"path": str(clean_place)}}
    NotebookClient(
        notebook, timeout=SECONDS_A_CELL, kernel_name="python3", resources=where
    ).execute()
    assert [each for each in outputs(notebook) if each.output_type == "error"] == []
    figures = [base64.b64decode(figure) for figure in of_kind(notebook, "image/png")]
    pages = [page for page in of_kind(notebook, "text/html") if "<iframe" in page]
    assert (len(figures), len(pages)) == SHOWN[name]
    # An empty figure of this size takes fewer bytes.
    assert all(figure.startswith(PNG) and len(figure) > 4_000 for figure in figures)
