"""The lists of model families and GGUF architectures on the pages are those of the code."""

import re
from pathlib import Path

from emsjax.loading.gguf.architectures import ARCHITECTURES
from emsjax.loading.hf.multimodal import TEXT_PARTS
from emsjax.models.registry import FAMILIES

ROOT = Path(__file__).parents[2]
HEADING = "| family | `model_type` |"


def quoted(text: str) -> list[str]:
    return re.findall(r"`(\w+)`", text)


def test_the_table_in_the_readme_has_every_family():
    _, _, after = (ROOT / "README.md").read_text().partition(HEADING)
    rows = after.partition("\n\n")[0].splitlines()[2:]
    found = [name for row in rows for name in quoted(row.split("|")[2])]
    assert sorted(found) == sorted(FAMILIES)


def test_the_command_line_page_has_every_architecture_of_gguf():
    page = (ROOT / "docs" / "command-line.md").read_text()
    (listed,) = re.findall(r"- GGUF of the architectures (.*?);", page, re.DOTALL)
    assert quoted(listed) == list(ARCHITECTURES)


def test_the_command_line_page_has_every_model_for_text_and_images():
    page = (ROOT / "docs" / "command-line.md").read_text()
    (listed,) = re.findall(r"model for text and images \((.*?)\)", page)
    assert quoted(listed) == list(TEXT_PARTS)
