"""The page in a real browser, in front of real services."""

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

from tests.gateway.browser import generate, launched, opened
from tests.gateway.conftest import Fleet, ask, free_port
from tests.gateway.test_doors import pixels
from tests.local.conftest import running_up
from triptych.client import Client

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect

AXE = Path(__file__).parents[2] / "services/triptych_gateway/web/node_modules/axe-core/axe.min.js"

pytestmark = pytest.mark.skipif(
    not os.environ.get("TRIPTYCH_BROWSER_TESTS"), reason="make page-test runs it, with a Chromium"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as browser:
        yield browser


@pytest.fixture
def page(browser: Any, fleet: Fleet) -> Iterator[Any]:
    """See opened."""
    with opened(browser, fleet) as page:
        yield page


@contextmanager
def serving(folder: Path, *options: str | Path) -> Iterator[Fleet]:
    """A fleet of the model in the folder."""
    address = f"127.0.0.1:{free_port()}"
    up = running_up(folder / "sockets", "--fused", "--model", folder / "tiny", "--http", address, *options)
    with up as running:
        yield Fleet(running, f"http://{address}")


@pytest.fixture(scope="module")
def klein(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Of a model that attends to references, and has guidance inside."""
    from tests.tiny_flux2 import flux2_pipeline

    folder = tmp_path_factory.mktemp("klein")
    flux2_pipeline(is_distilled=True).save_pretrained(folder / "tiny")
    with serving(folder) as fleet:
        yield fleet


@pytest.fixture
def klein_page(browser: Any, klein: Fleet) -> Iterator[Any]:
    with opened(browser, klein) as page:
        yield page


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


def shown_file(page: Any, folder: Path) -> Path:
    """The file of the picture that is shown large."""
    with page.expect_download() as download:
        page.get_by_role("link", name="Save").click()
    download.value.save_as(folder / "shown.png")
    return folder / "shown.png"


def shown(page: Any, folder: Path) -> Image.Image:
    """The picture that is shown large."""
    with Image.open(shown_file(page, folder)) as image:
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
    expect(page.get_by_role("dialog")).to_have_count(0)
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
    expect(page.get_by_role("dialog")).to_have_count(0)
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


def test_a_dropped_picture_becomes_what_the_person_chooses(klein_page: Any, tmp_path: Path) -> None:
    page, file = klein_page, picture(tmp_path, "red", "blue")
    drop(page, file)
    expect(page.get_by_role("alert")).to_contain_text("What becomes of this picture?")
    page.get_by_role("button", name="Use as reference").click()
    expect(page.get_by_alt_text("Reference 1")).to_be_visible()
    expect(page.get_by_alt_text("The picture to start from")).to_have_count(0)
    drop(page, file)
    page.get_by_role("button", name="Start from it").click()
    expect(page.get_by_alt_text("The picture to start from")).to_be_visible()
    expect(page.get_by_alt_text("Reference 2")).to_have_count(0)
    drop(page, file)
    page.get_by_role("button", name="Neither").click()
    expect(page.get_by_role("alert")).to_have_count(0)
    with last_request(page) as asked:
        generate(page, Steps="2")
    parameters = asked.value.post_data_json["parameters"]
    assert [b64decode(one) for one in (parameters["image"], *parameters["references"])] == [
        file.read_bytes()
    ] * 2
    expect(tiles(page)).to_have_count(1)
    (tmp_path / "words.txt").write_text("no picture")
    drop(page, tmp_path / "words.txt")
    expect(page.get_by_role("alert")).to_have_text(re.compile("This file is no picture that can be read"))


def test_a_model_that_edits_asks_for_a_reference(browser: Any, tmp_path: Path) -> None:
    from tests.qwen_processor import save
    from tests.tiny_qwen_image import qwen_image_edit_pipeline

    save(qwen_image_edit_pipeline(plus=False), tmp_path / "tiny")
    hint = "This model edits pictures: add a reference."
    with serving(tmp_path) as fleet, opened(browser, fleet) as page:
        expect(page.get_by_role("button", name="Generate")).to_have_accessible_description(hint)
        generate(page)
        expect(page.get_by_role("alert")).to_contain_text(hint)
        page.get_by_label("Add a reference…").set_input_files(picture(tmp_path, "red", "blue"))
        expect(page.get_by_text(hint)).to_have_count(0)
        generate(page, Steps="1", Width="64", Height="64")
        expect(tiles(page)).to_have_count(1)


def test_a_model_that_fills_asks_for_a_picture_and_a_mask(browser: Any, tmp_path: Path) -> None:
    from tests.tiny_flux import flux_fill_pipeline

    flux_fill_pipeline().save_pretrained(tmp_path / "tiny")
    with serving(tmp_path) as fleet, opened(browser, fleet) as page:
        generate(page)
        expect(page.get_by_role("alert")).to_contain_text("fills parts of a picture: start from one")
        start_from(page, picture(tmp_path, "red", "blue"))
        generate(page)
        expect(page.get_by_role("alert")).to_contain_text("paint a mask, or extend it")
        page.get_by_role("button", name="Paint a mask").click()
        page.locator(".board canvas").press("Space")
        page.get_by_role("button", name="Use this mask").click()
        expect(page.get_by_role("dialog")).to_have_count(0)
        generate(page, Steps="1")
        expect(tiles(page)).to_have_count(1)


def test_loras_are_asked_for_with_their_weights(browser: Any, tmp_path: Path, tiny_checkpoint: Path) -> None:
    from tests.denoiser.loras import random_lora, written

    shutil.copytree(tiny_checkpoint, tmp_path / "tiny")
    (tmp_path / "loras").mkdir()
    for seed, name in enumerate(("ink", "wax")):
        written(tmp_path / f"loras/{name}.safetensors", random_lora(seed))
    with (
        serving(tmp_path, "--lora-folder", tmp_path / "loras") as fleet,
        opened(browser, fleet) as page,
        Client(fleet.up.coordinator()) as client,
    ):
        for name in ("ink", "wax"):
            page.get_by_label("Add a LoRA").select_option(name)
        expect(page.get_by_label("Add a LoRA")).to_have_count(0)
        page.get_by_role("button", name="Without wax").click()
        generate(page, Steps="2", Seed="7", ink="0.8")
        expect(tiles(page)).to_have_count(1)
        asked = {"seed": 7, "num_inference_steps": 2}
        expected = client.generate("a cat", **asked, loras={"ink": 0.8}).images[0]
        without = client.generate("a cat", **asked).images[0]
        made = shown(page, tmp_path)
    assert made.tobytes() == pixels(expected.png) != pixels(without.png)


def test_a_lora_that_distils_the_model_brings_its_steps_and_no_guidance(
    browser: Any, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    from tests.denoiser.loras import random_lora, written

    shutil.copytree(tiny_checkpoint, tmp_path / "tiny")
    (tmp_path / "tiny/loras").mkdir()
    written(tmp_path / "tiny/loras/four-steps.safetensors", random_lora(1))
    (tmp_path / "tiny/triptych.json").write_text('{"distilling_loras": {"four-steps": 4}}')
    with serving(tmp_path) as fleet, opened(browser, fleet) as page:
        steps, guidance = (page.get_by_label(name, exact=True) for name in ("Steps", "Guidance"))
        usual = steps.input_value(), guidance.input_value()
        page.get_by_label("Add a LoRA").select_option("four-steps")
        expect(steps).to_have_value("4")
        expect(guidance).to_have_value("1")
        page.get_by_role("button", name="Without four-steps").click()
        expect(steps).to_have_value(usual[0])
        expect(guidance).to_have_value(usual[1])


def test_a_size_is_chosen_by_its_shape(page: Any) -> None:
    shapes = page.get_by_role("group", name="Shape")
    expect(shapes.get_by_role("button", name="Square")).to_have_attribute("aria-pressed", "true")
    shapes.get_by_role("button", name="Landscape").click()
    generate(page, Steps="1")
    expect(page.locator(".stage figcaption")).to_contain_text("80 × 48")
    shapes.get_by_role("button", name="Portrait").click()
    generate(page)
    expect(page.locator(".stage figcaption")).to_contain_text("48 × 80")


def test_a_seed_is_drawn_for_each_request_unless_it_is_locked(page: Any) -> None:
    def seeds() -> list[str]:
        drawn = []
        for _ in range(2):
            with last_request(page) as asked:
                generate(page, Steps="1")
            drawn += asked.value.post_data_json["parameters"]["seeds"]
        return drawn

    first, second = seeds()
    assert first != second
    page.get_by_role("button", name="Keep this seed").click()
    assert seeds() == [second, second]
    page.get_by_role("button", name="Draw a seed").click()
    third, fourth = seeds()
    assert third == fourth != second
    expect(tiles(page)).to_have_count(6)


def test_a_picture_of_the_gallery_is_started_from(page: Any, fleet: Fleet, tmp_path: Path) -> None:
    generate(page, Steps="2", Seed="7")
    expect(tiles(page)).to_have_count(1)
    page.get_by_role("button", name="Start from it").click()
    expect(page.get_by_alt_text("The picture to start from")).to_be_visible()
    file = shown_file(page, tmp_path).read_bytes()
    generate(page, "a dog", Steps="4", Seed="8", Strength="0.5")
    expect(tiles(page)).to_have_count(2)
    made = shown(page, tmp_path)
    with Client(fleet.up.coordinator()) as client:
        asked = {"seed": 8, "num_inference_steps": 4, "image": file, "strength": 0.5}
        assert made.tobytes() == pixels(client.generate("a dog", **asked).images[0].png)  # type: ignore[arg-type]


def test_a_phones_width_is_enough(browser: Any, fleet: Fleet) -> None:
    """Nothing is wider than the screen, by hand or by eye: 320 pixels is what WCAG asks for."""
    with opened(browser, fleet, width=320, height=640) as page:
        generate(page, "a cat " * 20)
        expect(tiles(page)).to_have_count(1)
        page.locator("summary", has_text="Settings").click()
        for section in ("More", "Grid"):
            page.locator("summary", has_text=section).click()
        page.get_by_role("button", name="Start from it").click()
        expect(page.get_by_alt_text("The picture to start from")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") == 320
        wide = "[...document.querySelectorAll('button, input, select, textarea')]"
        wide += ".filter(one => one.getBoundingClientRect().right > 320).map(one => one.outerHTML)"
        assert page.evaluate(wide) == []
        for button in ("Paint a mask", "Extend"):
            page.get_by_role("button", name=button).click()
            expect(page.get_by_role("dialog")).to_be_visible()
            assert page.evaluate("document.documentElement.scrollWidth") == 320
            page.keyboard.press("Escape")
            expect(page.get_by_role("dialog")).to_have_count(0)


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
