"""A headless browser that opens pages."""

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

# Debian's headless shell is enough; a whole Chromium or Chrome works as well.
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Starts an installed Chromium with Playwright, which does not download a browser here.

    It ends with the module: Playwright occupies the event loop of the thread, which others need.
    """
    named = os.environ.get("EMSJAX_CHROMIUM")
    path = next(filter(None, map(shutil.which, [named] if named else NAMES)), None)
    if path is None:
        pytest.fail(
            f"no {named or 'Chromium'} found; `apt-get install chromium-headless-shell` on Debian, "
            "or name any Chromium in EMSJAX_CHROMIUM",
            pytrace=False,
        )
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path)
        yield chromium
        chromium.close()
