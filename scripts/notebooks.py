"""Writes notebooks (`colab/*.ipynb`) from their text (`colab/*.py`), without outputs."""

import sys
from pathlib import Path

import jupytext
import nbformat

TEXTS = sorted(Path(__file__).parents[1].glob("colab/*.py"))


def notebook_of(text: Path) -> str:
    """Returns the .ipynb of a text, which does not depend on the version of jupytext."""
    notebook = jupytext.read(text)
    # The text representation names jupytext's version, and its cell ids are random.
    del notebook.metadata["jupytext"]["text_representation"]
    for number, cell in enumerate(notebook.cells, start=1):
        cell["id"] = f"cell-{number}"
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


def main() -> int:
    """Writes the notebooks; with `--check` names those that are out of date and returns 1."""
    check = sys.argv[1:] == ["--check"]
    stale = []
    for text in TEXTS:
        file, content = text.with_suffix(".ipynb"), notebook_of(text)
        if file.is_file() and file.read_text(encoding="utf-8") == content:
            continue
        stale.append(file.name)
        if not check:
            file.write_text(content, encoding="utf-8")
    for name in stale:
        print(f"{name} is out of date; run scripts/notebooks" if check else f"wrote {name}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
