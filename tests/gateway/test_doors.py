"""Every door gives the same bits: gRPC, /v1, /triptych/v1, /sdapi, page, command line, Client, Pipeline."""

import base64
import io
import json
import re
from pathlib import Path

import grpc
from google.protobuf.json_format import MessageToDict
from PIL import Image

from tests.gateway.browser import generate, launched, opened
from tests.gateway.conftest import Fleet, ask, ask_for
from tests.local.conftest import run
from triptych.client import Client, Pipeline
from triptych.v1.generation_parameters_pb2 import GenerationParameters
from triptych.v1.image_generation_pb2 import GenerateImagesRequest
from triptych.v1.image_generation_pb2_grpc import ImageGenerationServiceStub
from triptych.v1.sampling_pb2 import HeunSolver, Solver

PROMPT, NEGATIVE, SEED, STEPS, SCALE, WIDTH, HEIGHT = "a red cube", "mud", 7, 3, 2.5, 64, 48
NAMED = {"num_inference_steps": STEPS, "guidance_scale": SCALE, "negative_prompt": NEGATIVE, "seed": SEED}
OPTIONS = {"width": WIDTH, "height": HEIGHT, "solver": Solver(heun=HeunSolver()), **NAMED}
"""Of the Python client."""


def test_the_same_request_gives_the_same_bits_through_every_door(fleet: Fleet, tmp_path: Path) -> None:
    """The file to the bit; the pixels where it is no file, or where previews are asked for beside it."""
    parameters = GenerationParameters(
        prompts=[PROMPT],
        negative_prompts=[NEGATIVE],
        seeds=[SEED],
        num_inference_steps=STEPS,
        guidance_scale=SCALE,
        width=WIDTH,
        height=HEIGHT,
        solver=Solver(heun=HeunSolver()),
    )
    with grpc.insecure_channel(fleet.up.coordinator()) as channel:
        answer = ImageGenerationServiceStub(channel).GenerateImages(
            GenerateImagesRequest(parameters=parameters)
        )
    files = {"gRPC": answer.images[0].png}

    made = ask_for(fleet.url, prompt=PROMPT, size=f"{WIDTH}x{HEIGHT}", solver="heun", **NAMED)
    files["/v1"] = base64.b64decode(made.json()["data"][0]["b64_json"])

    size = ("--size", f"{WIDTH}x{HEIGHT}", "--solver", "heun")
    options = ("--negative", NEGATIVE, "--seed", str(SEED), "--steps", str(STEPS), "--guidance", str(SCALE))
    out = tmp_path / "out.png"
    done = run("generate", PROMPT, *options, *size, "-o", out, environment=fleet.up.environment)
    assert done.status == 0, done.stderr
    files["the command line"] = out.read_bytes()

    said = MessageToDict(parameters, preserving_proto_field_name=True)
    body = json.dumps({"parameters": said}).encode()
    events = ask(f"{fleet.url}/triptych/v1/generate", body, content_type="application/json").data.decode()
    (image,) = re.findall(r"^event: image\ndata: (.*)$", events, re.MULTILINE)
    files["/triptych/v1"] = base64.b64decode(json.loads(image)["png"])

    with Client(fleet.up.coordinator()) as client:
        files["Client"] = client.generate(PROMPT, **OPTIONS).images[0].png  # type: ignore[arg-type]
        output = Pipeline(client)(PROMPT, **OPTIONS)
    files["Pipeline"] = output.generation.images[0].png
    assert {name for name, file in files.items() if file != files["gRPC"]} == set()

    asked = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "seed": SEED, "steps": STEPS, "cfg_scale": SCALE}
    body = json.dumps(asked | {"width": WIDTH, "height": HEIGHT, "sampler_name": "Heun"}).encode()
    answered = ask(f"{fleet.url}/sdapi/v1/txt2img", body, content_type="application/json")
    expected = pixels(files["gRPC"])
    assert pixels(base64.b64decode(answered.json()["images"][0])) == expected
    assert output.images[0].tobytes() == expected


def test_the_page_gives_the_same_bits(fleet: Fleet) -> None:
    """The pixels: previews, which it asks for, are in a file's record."""
    with launched() as browser, opened(browser, fleet) as page:
        page.get_by_label("Negative prompt").fill(NEGATIVE)
        page.locator("summary", has_text="More").click()
        page.get_by_label("Solver").select_option("heun")
        size = {"Width": str(WIDTH), "Height": str(HEIGHT)}
        generate(page, PROMPT, Steps=str(STEPS), Guidance=str(SCALE), Seed=str(SEED), **size)
        with page.expect_download() as download:
            page.get_by_role("link", name="Save").click()
        assert download.value.suggested_filename == "a-red-cube-7.png"
        made = Path(download.value.path()).read_bytes()
    with Client(fleet.up.coordinator()) as client:
        expected = client.generate(PROMPT, **OPTIONS).images[0].png  # type: ignore[arg-type]
    assert pixels(made) == pixels(expected)


def pixels(file: bytes) -> bytes:
    with Image.open(io.BytesIO(file)) as opened:
        return opened.tobytes()
