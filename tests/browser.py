"""A real Chromium, in which the pages are looked at."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")


# as long as a file of tests: Playwright's loop, which runs meanwhile, would be in the way of asynchronous tests
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("there is no Chromium here")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@contextmanager
def opened(browser: Browser, page_path: Path, **options: Any) -> Iterator[Page]:
    """The page of a file. Fails at the end if it complained, or asked the network for anything."""
    page = browser.new_page(**{"viewport": {"width": 1280, "height": 900}, **options})
    complaints: list[str] = []
    page.on(
        "console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
    page.on("request", lambda request: complaints.append(request.url) if request.url.startswith("http") else None)
    page.goto(page_path.as_uri())
    yield page
    page.close()
    assert complaints == [], complaints
