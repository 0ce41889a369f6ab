"""Files that are there whole or not at all, whatever ends the program."""

from pathlib import Path


def replace_text(file: Path, text: str) -> None:
    """Writes a UTF-8 file in the place of what is there."""
    partial = file.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)
