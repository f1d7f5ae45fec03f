"""The page in Debian's Chromium, or another that is installed."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.gateway.conftest import Fleet

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE_MS = 60_000  # a machine may be busy with other things


@contextmanager
def launched(*options: str) -> Iterator[Any]:
    """A browser of playwright's, with these options too, or a skip where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    playwright.expect.set_options(timeout=PATIENCE_MS)
    with playwright.sync_playwright() as driver:
        arguments = ["--no-sandbox", "--disable-dev-shm-usage", *options]  # as root, and in containers
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Any, fleet: Fleet, width: int = 1280, height: int = 900) -> Iterator[Any]:
    """The page with an empty gallery. It may ask nobody but the gateway, nor write a complaint."""
    context = browser.new_context(viewport={"width": width, "height": height})
    context.set_default_timeout(PATIENCE_MS)
    page, strangers, complaints = context.new_page(), list[str](), list[str]()
    page.on(
        "request",
        lambda asked: (
            None if asked.url.startswith((fleet.url, "blob:", "data:")) else strangers.append(asked.url)
        ),
    )
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(fleet.url)
    page.get_by_label("Prompt", exact=True).wait_for()
    yield page
    context.close()
    assert strangers == []
    assert [said for said in complaints if "Failed to load resource" not in said] == []


def generate(page: Any, prompt: str = "a cat", **fields: str) -> None:
    """Asks for a picture; fields are values by their label."""
    page.get_by_label("Prompt", exact=True).fill(prompt)
    for label, value in fields.items():
        page.get_by_label(label, exact=True).fill(value)
    page.keyboard.press("Control+Enter")
