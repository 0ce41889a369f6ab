"""Everything that pages and READMEs name exists: files, modules and the targets of links."""

import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
OUTSIDE = [
    ROOT / name
    for name in (
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "benchmarks/README.md",
        "colab/README.md",
        "pallas_kernels/README.md",
    )
]
# Sphinx checks the links of the pages in `docs/`; this module checks those of the other pages.
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *OUTSIDE]
FOLDERS = "emsjax|models|pallas_kernels|benchmarks|tests|scripts|docs|colab"
FILE = re.compile(rf"(?:{FOLDERS})/[\w./-]*")
MODULE = re.compile(r"(?:python -m )?((?:emsjax|benchmarks)(?:\.\w+)+)(?: .*)?")
# Files that a page tells the reader to write.
TO_WRITE = {"models/starcoder2.py"}


def inside(tokens: list[Token]) -> Iterator[Token]:
    for token in tokens:
        yield token
        yield from inside(token.children or [])


def tokens_of(page: Path, kind: str) -> list[Token]:
    parsed = MarkdownIt().enable("table").parse(page.read_text())
    return [token for token in inside(parsed) if token.type == kind]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """Returns the anchors of a page: headings in lower case, hyphenated, without punctuation."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_pages_name_enough_to_check():
    spans = [token.content for page in PAGES for token in tokens_of(page, "code_inline")]
    assert sum(FILE.fullmatch(span) is not None for span in spans) > 30
    assert sum(MODULE.fullmatch(span) is not None for span in spans) > 5


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_named_files_exist(page: Path):
    spans = {token.content for token in tokens_of(page, "code_inline")}
    files = {span for span in spans if FILE.fullmatch(span)} - TO_WRITE
    assert {file for file in files if not (ROOT / file).exists()} == set()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_named_modules_exist(page: Path):
    for token in tokens_of(page, "code_inline"):
        if named := MODULE.fullmatch(token.content):
            assert pkgutil.resolve_name(named[1])


@pytest.mark.parametrize("page", OUTSIDE, ids=name_of)
def test_links_have_targets(page: Path):
    links = {str(token.attrs["href"]) for token in tokens_of(page, "link_open")}
    links |= {str(token.attrs["src"]) for token in tokens_of(page, "image")}
    for link in links:
        if link.startswith("https://"):
            continue
        target, _, anchor = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), link
        assert not anchor or anchor in anchors(file), link
