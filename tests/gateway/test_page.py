"""The page in a real browser, in front of real services: Debian's Chromium, or another that is installed."""

import io
import json
import re
import shutil
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops

from tests.gateway.conftest import Fleet, ask

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect
expect.set_options(timeout=60_000)  # a machine may be busy with other things

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
AXE = Path(__file__).parents[2] / "services/triptych_gateway/web/node_modules/axe-core/axe.min.js"

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]  # as root, and in containers
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, fleet: Fleet) -> Iterator[Any]:
    """The page with an empty gallery. It may ask nobody but the gateway, nor write a complaint."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(60_000)
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
    expect(page.get_by_label("Prompt", exact=True)).to_be_visible()
    yield page
    context.close()
    assert strangers == []
    assert [said for said in complaints if "Failed to load resource" not in said] == []


def generate(page: Any, prompt: str = "a cat", **fields: str) -> None:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    for label, value in fields.items():
        page.get_by_label(label, exact=True).fill(value)
    page.keyboard.press("Control+Enter")


def tiles(page: Any) -> Any:
    """Pictures of the gallery, without requests that run."""
    return page.locator(".gallery .tile:not(:has(.badge))")


def test_a_prompt_gives_a_picture_that_the_browser_keeps(page: Any) -> None:
    generate(page, "a zebra above a cactus", Steps="4", Seed="7")
    expect(tiles(page)).to_have_count(1)
    expect(page.locator(".stage figcaption")).to_contain_text("64 × 64, 4 steps, seed 7")
    page.reload()
    expect(page.locator(".stage img")).to_have_attribute("alt", "a zebra above a cactus")
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a zebra above a cactus")


def test_a_page_asks_for_the_bits_that_every_client_gets(page: Any, fleet: Fleet) -> None:
    generate(page, "a zebra", Steps="3", Seed="7")
    expect(tiles(page)).to_have_count(1)
    with page.expect_download() as download:
        page.get_by_role("link", name="Save").click()
    made = fleet.openai().images.generate(prompt="a zebra", extra_body={"seed": 7, "num_inference_steps": 3})
    assert made.data is not None
    assert download.value.suggested_filename == "a-zebra-7.png"
    theirs = io.BytesIO(b64decode(made.data[0].b64_json or ""))
    with Image.open(download.value.path()) as ours, Image.open(theirs) as expected:
        assert ImageChops.difference(ours, expected).getbbox() is None


def test_previews_are_shown_while_it_runs_and_escape_cancels(page: Any) -> None:
    generate(page, Width="384", Height="384", Pictures="16", Steps="200")  # for minutes
    expect(page.locator(".stage img.preview").first).to_be_visible()
    expect(page.locator(".stage .progress")).to_contain_text(re.compile(r"Step \d+ of 200"))
    page.keyboard.press("Escape")
    expect(page.get_by_role("status")).to_have_text("Cancelled")
    expect(page.locator(".stage img.preview")).to_have_count(0)
    expect(tiles(page)).to_have_count(0)


def test_what_the_server_refuses_is_said(page: Any) -> None:
    page.route("**/triptych/v1/generate", lambda route: route.continue_(post_data=_with_odd_width(route)))
    generate(page)
    expect(page.get_by_role("alert")).to_contain_text("width")
    page.get_by_role("button", name="Dismiss").click()
    expect(page.get_by_role("alert")).to_have_count(0)


def _with_odd_width(route: Any) -> str:
    body = route.request.post_data_json
    body["parameters"]["width"] = 63
    return json.dumps(body)


def test_the_page_is_the_gateways_and_loads_nothing_else(fleet: Fleet) -> None:
    answer = ask(f"{fleet.url}/")
    policy = answer.headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    asset = re.search(r'src="(/assets/[^"]+\.js)"', answer.data.decode())
    assert asset
    assert "immutable" in ask(fleet.url + asset[1]).headers["cache-control"]
    assert ask(fleet.url + "/assets/../page.py").status == 404


def test_a_request_outlives_a_restart_of_the_gateway(page: Any, fleet: Fleet) -> None:
    services = fleet.up.services()
    services["triptych_local.running.fused"].suspend()
    try:
        generate(page, "a boat", Steps="3", Seed="3")
        expect(page.locator(".stage .progress")).to_contain_text("Asking")
        services["triptych_gateway"].kill()
        expect(page.locator(".stage .progress")).to_contain_text("Trying again")
    finally:
        services["triptych_local.running.fused"].resume()
    expect(page.locator(".stage figcaption")).to_contain_text("seed 3")


@pytest.mark.skipif(not AXE.exists(), reason="axe-core is not installed: make page does it")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_stands_in_the_way_of_people_who_use_it_otherwise(page: Any, scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme)
    generate(page, Steps="2")
    expect(tiles(page)).to_have_count(1)
    assert violations(page) == []


def violations(page: Any) -> list[str]:
    """What axe finds wrong, and where."""
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run()")["violations"]
    return [f"{one['id']}: {one['nodes'][0]['html']}" for one in found]
