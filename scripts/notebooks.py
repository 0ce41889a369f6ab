"""From the text of a notebook (`colab/*.py`) to its .ipynb, without outputs: scripts/notebooks."""

import sys
from pathlib import Path

import jupytext
import nbformat

TEXTS = sorted(Path(__file__).parents[1].glob("colab/*.py"))


def notebook_of(text: Path) -> str:
    """The .ipynb of a text; the same for the same text, whatever the version of jupytext."""
    notebook = jupytext.read(text)
    del notebook.metadata["jupytext"]["text_representation"]
    for number, cell in enumerate(notebook.cells, start=1):
        cell["id"] = f"cell-{number}"
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


def main() -> int:
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
        print(f"{name} is not what its text says" if check else f"wrote {name}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
