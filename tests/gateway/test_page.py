"""The page in a real browser, in front of real services: Debian's Chromium, or another that is installed."""

import io
import json
import os
import re
import shutil
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops, PngImagePlugin

from tests.gateway import test_doors as doors
from tests.gateway.conftest import Fleet, ask, free_port
from tests.local.conftest import running_up
from triptych.client import Client

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect
expect.set_options(timeout=60_000)  # a machine may be busy with other things

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
AXE = Path(__file__).parents[2] / "services/triptych_gateway/web/node_modules/axe-core/axe.min.js"

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or not os.environ.get("TRIPTYCH_BROWSER_TESTS"),
    reason="make page-test runs it, with a Chromium (apt-get install chromium)",
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
    with opened(browser, fleet) as page:
        yield page


@pytest.fixture(scope="module")
def klein(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A fleet of a model that attends to references, and has guidance inside."""
    from tests.tiny_flux2 import flux2_pipeline

    folder, address = tmp_path_factory.mktemp("klein"), f"127.0.0.1:{free_port()}"
    flux2_pipeline(is_distilled=True).save_pretrained(folder / "tiny")
    with running_up(folder / "sockets", "--fused", "--model", folder / "tiny", "--http", address) as up:
        yield Fleet(up, f"http://{address}")


@pytest.fixture
def klein_page(browser: Any, klein: Fleet) -> Iterator[Any]:
    """Likewise."""
    with opened(browser, klein) as page:
        yield page


@contextmanager
def opened(browser: Any, fleet: Fleet) -> Iterator[Any]:
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


def test_the_page_is_a_door_like_all_others(page: Any, fleet: Fleet) -> None:
    """The pixels: previews, which it asks for, are in a file's record."""
    page.get_by_label("Negative prompt").fill(doors.NEGATIVE)
    page.locator("summary", has_text="More").click()
    page.get_by_label("Solver").select_option("heun")
    size = {"Width": str(doors.WIDTH), "Height": str(doors.HEIGHT)}
    generate(
        page, doors.PROMPT, Steps=str(doors.STEPS), Guidance=str(doors.SCALE), Seed=str(doors.SEED), **size
    )
    expect(page.locator(".stage figcaption")).to_contain_text(f"seed {doors.SEED}")
    with page.expect_download() as download:
        page.get_by_role("link", name="Save").click()
    assert download.value.suggested_filename == "a-red-cube-7.png"
    with Client(fleet.up.coordinator()) as client:
        expected = client.generate(doors.PROMPT, **doors.OPTIONS).images[0].png  # type: ignore[arg-type]
    assert doors.pixels(Path(download.value.path()).read_bytes()) == doors.pixels(expected)


def test_previews_are_shown_while_it_runs_and_escape_cancels(page: Any) -> None:
    generate(page, Width="384", Height="384", Pictures="16", Steps="200")  # for minutes
    expect(page.locator(".stage img.preview").first).to_be_visible()
    expect(page.locator(".stage .progress")).to_contain_text(re.compile(r"Step \d+ of 200"))
    page.keyboard.press("Escape")
    expect(page.get_by_role("status")).to_have_text("Cancelled")
    expect(page.locator(".stage img.preview")).to_have_count(0)
    expect(tiles(page)).to_have_count(0)


def test_a_request_that_waits_for_its_turn_says_how_many_are_ahead(page: Any) -> None:
    generate(page, Width="384", Height="384", Pictures="16", Steps="200")  # which fills the server
    expect(page.locator(".stage .progress")).to_contain_text("Step ")
    generate(page, "first", Width="64", Height="64", Pictures="1", Steps="2")
    expect(page.locator(".stage .progress")).to_contain_text("Next in the queue")
    generate(page, "second")
    expect(page.locator(".stage .progress")).to_contain_text("1 request ahead of you")
    page.locator(".gallery .tile:has(.badge)").last.click()
    page.get_by_role("button", name="Cancel").last.click()
    expect(tiles(page)).to_have_count(2)


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
        expect(page.locator(".stage .progress")).to_contain_text("Waiting for its turn")
        services["triptych_gateway"].kill()
        expect(page.locator(".stage .progress")).to_contain_text("Trying again")
    finally:
        services["triptych_local.running.fused"].resume()
    expect(page.locator(".stage figcaption")).to_contain_text("seed 3")


def picture(folder: Path, *colours: str) -> Path:
    """A PNG of 64 x 64 pixels, in stripes."""
    image = Image.new("RGB", (64, 64))
    for at, colour in enumerate(colours):
        image.paste(colour, (at * 64 // len(colours), 0, 64, 64))
    image.save(folder / "picture.png")
    return folder / "picture.png"


def start_from(page: Any, file: Path) -> None:
    page.get_by_label("Start from a picture…").set_input_files(file)
    expect(page.get_by_alt_text("The picture to start from")).to_be_visible()


def last_request(page: Any) -> Any:
    """The parameters of the request that the block makes."""
    return page.expect_request("**/triptych/v1/generate")


def shown(page: Any, folder: Path) -> Image.Image:
    """The picture that is shown large."""
    with page.expect_download() as download:
        page.get_by_role("link", name="Save").click()
    download.value.save_as(folder / "shown.png")
    with Image.open(folder / "shown.png") as image:
        return image.convert("RGB")


def test_what_is_painted_is_made_anew_and_the_rest_stays(page: Any, tmp_path: Path) -> None:
    file = picture(tmp_path, "red", "blue")
    start_from(page, file)
    page.get_by_role("button", name="Paint a mask").click()
    board = page.locator(".board canvas")
    page.get_by_label("Brush size", exact=True).fill("16")
    box = board.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.1, box["y"] + box["height"] * 0.5)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.5, steps=5)
    page.mouse.up()
    board.press("Space")  # in the middle, by keys
    page.get_by_role("button", name="Undo").click()
    page.get_by_role("button", name="Use this mask").click()
    with last_request(page) as asked:
        generate(page, Steps="3")
    parameters = asked.value.post_data_json["parameters"]
    assert (parameters["strength"], parameters["preserve"]) == (1, True)
    with Image.open(io.BytesIO(b64decode(parameters["mask"]))) as mask:
        assert mask.size == (64, 64)
        assert {mask.convert("L").getpixel(at) for at in ((32, 32), (63, 0))} == {0}, "undone, and untouched"
        assert mask.convert("L").getpixel((13, 32)) == 255
    expect(tiles(page)).to_have_count(1)
    with Image.open(file) as before:
        changed = ImageChops.difference(shown(page, tmp_path), before).getbbox()
    assert changed is not None
    assert changed[2] <= 40, "what is to the right of the mask stays to the bit"


def test_a_frame_that_is_dragged_extends_the_picture(page: Any, tmp_path: Path) -> None:
    file = picture(tmp_path, "red", "blue")
    start_from(page, file)
    page.get_by_role("button", name="Extend").click()
    page.get_by_role("slider", name="Pixels to the right side").press("ArrowRight")
    edge = page.get_by_role("slider", name="Pixels to the bottom")
    box = edge.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2 + 60, steps=5)
    page.mouse.up()
    bottom = int(edge.get_attribute("aria-valuenow"))
    assert bottom > 0
    page.get_by_role("button", name="Use this frame").click()
    generate(page, Steps="2")
    expect(tiles(page)).to_have_count(1)
    extended = shown(page, tmp_path)
    assert extended.size == (80, 64 + bottom)
    assert extended.getpixel((8, 8)) == (255, 0, 0)


def test_a_file_says_how_it_was_made_and_is_made_again(page: Any, tmp_path: Path) -> None:
    generate(page, "a zebra", Steps="3", Seed="7")
    expect(tiles(page)).to_have_count(1)
    first = shown(page, tmp_path)
    generate(page, "something else", Steps="2", Seed="8")
    expect(tiles(page)).to_have_count(2)
    drop(page, tmp_path / "shown.png")
    page.get_by_role("button", name="Use its settings").click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a zebra")
    page.keyboard.press("Control+Enter")
    expect(tiles(page)).to_have_count(3)
    assert ImageChops.difference(shown(page, tmp_path), first).getbbox() is None


@pytest.mark.parametrize("kind", ["webp", "jpeg"])
def test_files_of_other_kinds_say_how_they_were_made(
    page: Any, fleet: Fleet, tmp_path: Path, kind: Any
) -> None:
    prompt = 'a "fox" & <owl>, \u00fc'
    made = fleet.openai().images.generate(
        prompt=prompt, output_format=kind, extra_body={"seed": 5, "num_inference_steps": 2}
    )
    assert made.data is not None
    (tmp_path / kind).write_bytes(b64decode(made.data[0].b64_json or ""))
    drop(page, tmp_path / kind)
    page.get_by_role("button", name="Use its settings").click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value(prompt)
    expect(page.get_by_label("Seed", exact=True)).to_have_value("5")


def test_the_text_of_other_tools_is_read(page: Any, tmp_path: Path) -> None:
    texts = PngImagePlugin.PngInfo()
    settings = 'Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 4.5, Seed: 12, Size: 128x64, Notes: "b, c"'
    texts.add_text("parameters", f"a cat, sitting\nNegative prompt: a dog\n{settings}")
    Image.new("RGB", (8, 8)).save(tmp_path / "other.png", pnginfo=texts)
    drop(page, tmp_path / "other.png")
    page.get_by_role("button", name="Use its settings").click()
    with last_request(page) as asked:
        page.keyboard.press("Control+Enter")
    assert asked.value.post_data_json["parameters"] == {
        "prompts": ["a cat, sitting"],
        "negative_prompts": ["a dog"],
        "width": 128,
        "height": 64,
        "num_inference_steps": 20,
        "guidance_scale": 4.5,
        "num_images_per_prompt": 1,
        "seeds": ["12"],
        "solver": {"dpmpp_2m": {}},
        "sigma_schedule": {"karras": {}},
        "preview_every": 1,
    }


def drop(page: Any, file: Path) -> None:
    """Drops a file on the page."""
    page.evaluate(
        """([name, data]) => {
            const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
            const carried = new DataTransfer();
            carried.items.add(new File([bytes], name));
            document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: carried, bubbles: true }));
        }""",
        [file.name, b64encode(file.read_bytes()).decode()],
    )


def test_what_ends_does_not_scroll_the_page_under_the_persons_hand(page: Any, fleet: Fleet) -> None:
    page.set_viewport_size({"width": 1280, "height": 600})
    server = fleet.up.services()["triptych_local.running.fused"]
    server.suspend()
    try:
        generate(page, Steps="2")
        expect(page.locator(".stage .progress")).to_contain_text("Waiting for its turn")
        page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
        below = page.evaluate("scrollY")
        top = page.locator(".stage").bounding_box()["y"]
        assert top < 0, "it is not all in sight"
    finally:
        server.resume()
    expect(page.get_by_role("button", name="More steps")).to_have_count(1)  # it has ended
    assert page.evaluate("scrollY") == below
    page.locator(".gallery .tile").first.evaluate("tile => tile.click()")
    assert page.evaluate("scrollY") < below, "what the person asks to see is shown"


def test_buttons_stay_where_they_are_while_a_picture_loads(page: Any, tmp_path: Path) -> None:
    start_from(page, picture(tmp_path, "red", "blue"))
    button = page.get_by_role("button", name="Extend")
    start = page.get_by_alt_text("The picture to start from")
    expect(start).to_have_js_property("complete", True)
    before = button.bounding_box()
    start.evaluate("image => image.removeAttribute('src')")
    assert button.bounding_box() == before


def test_references_are_sent_and_come_back_with_the_settings(klein_page: Any, tmp_path: Path) -> None:
    page, file = klein_page, picture(tmp_path, "red", "blue")
    page.get_by_label("Add a reference…").set_input_files(file)
    expect(page.get_by_alt_text("Reference 1")).to_be_visible()
    with last_request(page) as asked:
        generate(page, Steps="1")
    parameters = asked.value.post_data_json["parameters"]
    assert [b64decode(one) for one in parameters["references"]] == [file.read_bytes()]
    assert (parameters["width"], parameters["height"]) == (64, 64)
    page.get_by_role("button", name="Use as reference").click()
    page.get_by_role("button", name="Remove reference 1").click()
    with last_request(page) as asked:
        generate(page)
    shown(page, tmp_path)
    made = [b64decode(one) for one in asked.value.post_data_json["parameters"]["references"]]
    assert [Image.open(io.BytesIO(one)).size for one in made] == [(64, 64)]
    assert made != [file.read_bytes()]
    expect(tiles(page)).to_have_count(2)
    page.get_by_role("button", name="Remove reference 1").click()
    expect(page.get_by_alt_text("Reference 1")).to_have_count(0)
    page.get_by_role("button", name="Use these settings").click()
    expect(page.get_by_alt_text("Reference 1")).to_be_visible()
    assert violations(page) == []


def test_a_negative_prompt_of_a_model_with_guidance_inside_has_a_scale(klein_page: Any) -> None:
    page = klein_page
    expect(page.get_by_label("True CFG scale", exact=True)).to_have_count(0)
    page.get_by_label("Negative prompt").fill("a dog")
    page.get_by_label("True CFG scale", exact=True).fill("2.5")
    with last_request(page) as asked:
        generate(page, Steps="1")
    parameters = asked.value.post_data_json["parameters"]
    assert (parameters["negative_prompts"], parameters["true_cfg_scale"]) == (["a dog"], 2.5)
    assert "guidance_scale" not in parameters
    expect(tiles(page)).to_have_count(1)


def test_vary_and_more_steps_ask_for_what_they_say(page: Any) -> None:
    generate(page, Steps="2", Seed="7")
    expect(tiles(page)).to_have_count(1)
    with last_request(page) as asked:
        page.get_by_role("button", name="More steps").click()
    parameters = asked.value.post_data_json["parameters"]
    assert (parameters["num_inference_steps"], parameters["seeds"]) == (4, ["7"])
    expect(tiles(page)).to_have_count(2)
    with last_request(page) as asked:
        page.get_by_role("button", name="Vary").click()
    assert asked.value.post_data_json["parameters"]["variation"]["strengths"] == [0.25]
    expect(tiles(page)).to_have_count(6)


def test_other_parameters_are_those_that_the_server_describes(page: Any) -> None:
    page.locator("summary", has_text="More").click()
    page.get_by_label("Solver").select_option("euler_ancestral")
    page.get_by_label("Eta").fill("0.5")
    page.get_by_label("Eta").press("Tab")
    page.get_by_label("Sigma schedule").select_option("karras")
    with last_request(page) as asked:
        generate(page, Steps="2")
    parameters = asked.value.post_data_json["parameters"]
    assert parameters["solver"] == {"euler_ancestral": {"eta": 0.5}}
    assert parameters["sigma_schedule"] == {"karras": {}}
    expect(tiles(page)).to_have_count(1)


def test_a_grid_has_a_picture_for_each_pair_of_values(page: Any) -> None:
    page.get_by_label("Prompt", exact=True).fill("a cat")
    page.get_by_label("Steps", exact=True).fill("2")
    page.locator("summary", has_text="Grid").click()
    page.get_by_label("Values across").fill("1, 3")
    page.get_by_label("Down", exact=True).select_option("prompt")
    page.get_by_label("Values down").fill("cat, dog")
    page.get_by_role("button", name="Make 4 pictures").click()
    expect(page.locator("table img:not([alt=Preview])")).to_have_count(4)
    expect(page.locator("table th")).to_have_text(["Guidance scale 1", "Guidance scale 3", "cat", "dog"])
    expect(page.get_by_role("button", name="Save the grid")).to_be_visible()


@pytest.mark.skipif(not AXE.exists(), reason="axe-core is not installed: make page does it")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_stands_in_the_way_of_people_who_use_it_otherwise(page: Any, scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme)
    generate(page, Steps="2")
    expect(tiles(page)).to_have_count(1)
    for section in ("More", "Grid"):
        page.locator("summary", has_text=section).click()
    assert violations(page) == []
    page.get_by_role("button", name="Start from it").click()
    for button in ("Paint a mask", "Extend"):
        page.get_by_role("button", name=button).click()
        assert violations(page) == []
        page.keyboard.press("Escape")


def violations(page: Any) -> list[str]:
    """What axe finds wrong, and where."""
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run()")["violations"]
    return [f"{one['id']}: {one['nodes'][0]['html']}" for one in found]
