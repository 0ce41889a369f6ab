"""A browser without a window, for pages."""

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

# Debian's headless shell is all that is needed; a whole Chromium or Chrome does as well.
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, driven by Playwright, which brings no browser of its own here."""
    named = os.environ.get("EMSJAX_CHROMIUM")
    path = next(filter(None, map(shutil.which, [named] if named else NAMES)), None)
    if path is None:
        pytest.fail(
            f"there is no {named or 'Chromium'} to open the page in: `apt-get install "
            "chromium-headless-shell` on Debian, or name any Chromium in EMSJAX_CHROMIUM",
            pytrace=False,
        )
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path)
        yield chromium
        chromium.close()
